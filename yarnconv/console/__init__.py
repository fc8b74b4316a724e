"""What people see: tables, bars, progress, messages."""
