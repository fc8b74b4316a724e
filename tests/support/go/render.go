// Renders a template with Go's own text/template over the values that Ollama gives one.
//
// stdin: {"template", "conversations": [[{"role", "content"}]]}; stdout: ["text", ...].
package main

import (
	"encoding/json"
	"fmt"
	"os"
	"strings"
	"text/template"
)

type message struct {
	Role    string `json:"role"`
	Content string `json:"content"`
}

func fail(err error) {
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

// joined makes one message of neighbours that share a role, and one text of all system texts.
func joined(messages []message) (string, []*message) {
	var system []string
	var kept []*message
	for _, next := range messages {
		if next.Role == "system" {
			system = append(system, next.Content)
		}
		if len(kept) > 0 && kept[len(kept)-1].Role == next.Role {
			kept[len(kept)-1].Content += "\n\n" + next.Content
			continue
		}
		copied := next
		kept = append(kept, &copied)
	}
	return strings.Join(system, "\n\n"), kept
}

func main() {
	var request struct {
		Template      string      `json:"template"`
		Conversations [][]message `json:"conversations"`
	}
	fail(json.NewDecoder(os.Stdin).Decode(&request))
	parsed, err := template.New("").Option("missingkey=zero").Parse(request.Template)
	fail(err)
	texts := []string{}
	for _, conversation := range request.Conversations {
		system, messages := joined(conversation)
		var text strings.Builder
		fail(parsed.Execute(&text, map[string]any{"System": system, "Messages": messages, "Response": ""}))
		texts = append(texts, text.String())
	}
	fail(json.NewEncoder(os.Stdout).Encode(texts))
}
