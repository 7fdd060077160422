package main

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"testing"
)

// TestUses does everything that is measured with a small tree, and proves that a
// use notices when the tree is another.
func TestUses(t *testing.T) {
	root := t.TempDir()
	for i := range 20 {
		if err := os.MkdirAll(filepath.Join(root, "usr", fmt.Sprint(i%3)), 0o755); err != nil {
			t.Fatal(err)
		}
		size := 100
		if i < 2 {
			size = 3 << 20
		}
		if err := os.WriteFile(filepath.Join(root, "usr", fmt.Sprint(i%3), fmt.Sprint(i)), bytes.Repeat([]byte{1}, size), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	tr, err := readTree(root, "usr")
	if err != nil {
		t.Fatal(err)
	}
	if len(tr.large) != 2 || len(tr.small) != 18 || len(tr.dirs) != 4 {
		t.Errorf("%d large files, %d small ones, %d directories", len(tr.large), len(tr.small), len(tr.dirs))
	}
	if err := tr.readAll(); err != nil {
		t.Error(err)
	}
	for _, u := range uses() {
		if err := u.use(tr); err != nil {
			t.Errorf("%s: %v", u.name, err)
		}
	}
	if err := os.RemoveAll(filepath.Join(root, "usr", "1")); err != nil {
		t.Fatal(err)
	}
	for _, use := range []func() error{tr.walk, tr.stat, tr.readLarge, tr.readRandom, tr.mapLarge} {
		if use() == nil {
			t.Error("what is gone is not missed")
		}
	}
	if _, err := readTree(root, "none"); err == nil {
		t.Error("a tree that is not there is read")
	}
}
