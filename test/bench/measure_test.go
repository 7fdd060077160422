package main

import (
	"path/filepath"
	"strings"
	"testing"
)

// TestLockState: two benches do not share a directory.
func TestLockState(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "new")
	first, err := lockState(dir)
	if err != nil {
		t.Fatal(err)
	}
	if f, err := lockState(dir); err == nil || !strings.Contains(err.Error(), "another bench is using it") {
		t.Errorf("locked twice: %v, %v", f, err)
	}
	if err := first.Close(); err != nil {
		t.Fatal(err)
	}
	again, err := lockState(dir)
	if err != nil {
		t.Fatal(err)
	}
	if err := again.Close(); err != nil {
		t.Error(err)
	}
}
