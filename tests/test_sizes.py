import pytest

from yarnconv.sizes import readable_size


@pytest.mark.parametrize(
    ("count", "digits", "said"),
    [
        (0, 3, "0 bytes"),
        (999, 3, "999 bytes"),
        (1000, 3, "1 kB"),
        (12_582_912, 3, "12.6 MB"),
        (688_600_000_000, 3, "689 GB"),
        (140_120_000_000, 5, "140.12 GB"),
        (1.34e12, 3, "1.34 TB"),
        (999_999, 3, "1 MB"),
    ],
)
def test_the_largest_unit_that_is_filled(count, digits, said):
    assert readable_size(count, digits) == said
