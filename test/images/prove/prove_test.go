package main

import (
	"strings"
	"testing"

	"github.com/apparate/apparate/test/images"
)

// TestSmoke proves that the images of the benchmark's smoke tier, and those that
// cost nothing more, start and answer. The others are larger than a test may fetch:
// the benchmark and this command prove them.
func TestSmoke(t *testing.T) {
	names := append(images.Smoke(), "hello-static", "deb-slim")
	var table strings.Builder
	if err := run(t.Context(), t.Output(), &table, names); err != nil {
		t.Fatal(err)
	}
	t.Log(table.String())
	for _, n := range names {
		if !strings.Contains(table.String(), n) {
			t.Errorf("the table lacks %s", n)
		}
	}
}
