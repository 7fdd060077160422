package main

import (
	"bytes"
	"os"
	"path/filepath"
	"testing"
)

// TestCommitted proves that what is committed is what is generated, and that the
// directories of copies have nothing else in them.
func TestCommitted(t *testing.T) {
	root := filepath.Join("..", "..")
	files, err := generate(root)
	if err != nil {
		t.Fatal(err)
	}
	chart := filepath.Join(root, "charts", "apparate")
	for name, want := range files {
		got, err := os.ReadFile(filepath.Join(chart, name))
		if err != nil || !bytes.Equal(got, want) {
			t.Errorf("charts/apparate/%s is not what is generated: run 'make generate' (%v)", name, err)
		}
	}
	for _, dir := range copied {
		there, err := os.ReadDir(filepath.Join(chart, dir))
		if err != nil {
			t.Fatal(err)
		}
		for _, f := range there {
			if files[dir+"/"+f.Name()] == nil {
				t.Errorf("charts/apparate/%s/%s is generated from nothing: run 'make generate'", dir, f.Name())
			}
		}
	}
}
