package host

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

func TestConfigOf(t *testing.T) {
	for args, want := range map[string]string{
		"containerd":                              "/etc/containerd/config.toml",
		"containerd --config /a.toml":             "/a.toml",
		"containerd --log-level info -c /b.toml":  "/b.toml",
		"containerd --config=/c.toml --root /r":   "/c.toml",
		"containerd -c=/d.toml":                   "/d.toml",
		"containerd --config":                     "/etc/containerd/config.toml",
		"/usr/bin/containerd --address /run/x -l": "/etc/containerd/config.toml",
	} {
		if got := configOf(strings.Fields(args)); got != want {
			t.Errorf("%q: %s, want %s", args, got, want)
		}
	}
}

// TestWriteFile: a file that is the same is not touched, one that is not keeps its mode,
// and a link stays one.
func TestWriteFile(t *testing.T) {
	dir := t.TempDir()
	path, link := filepath.Join(dir, "new", "file"), filepath.Join(dir, "link")
	write := func(path string, data []byte, want bool) {
		t.Helper()
		if changed, err := writeFile(path, data, 0o640); err != nil || changed != want {
			t.Fatalf("changed %v, %v, want %v", changed, err, want)
		}
	}
	write(path, []byte("a"), true)
	if err := errors.Join(os.Chmod(path, 0o604), os.Symlink(path, link), os.Chtimes(path, time.Time{}, time.Unix(1, 0))); err != nil {
		t.Fatal(err)
	}
	write(path, []byte("a"), false)
	if fi, err := os.Stat(path); err != nil || !fi.ModTime().Equal(time.Unix(1, 0)) {
		t.Errorf("a file that is the same was written: %v, %v", fi.ModTime(), err)
	}
	write(link, []byte("b"), true)
	if fi, err := os.Lstat(link); err != nil || fi.Mode().Type() != os.ModeSymlink {
		t.Errorf("the link is a %v, %v", fi.Mode(), err)
	}
	if fi, err := os.Stat(path); err != nil || fi.Mode().Perm() != 0o604 {
		t.Errorf("mode %v, %v", fi.Mode(), err)
	}
	write(path, []byte{}, true)
	if b, err := readOptional(path); err != nil || b == nil || len(b) != 0 {
		t.Errorf("an empty file is %v, %v", b, err)
	}
	write(path, nil, true)
	write(path, nil, false)
	if left, err := os.ReadDir(filepath.Dir(path)); err != nil || len(left) != 0 {
		t.Errorf("left are %v, %v", left, err)
	}
}

// TestCopyProgram: a program that runs is replaced, not written into.
func TestCopyProgram(t *testing.T) {
	dst := filepath.Join(t.TempDir(), "bin", "program")
	if changed, err := CopyProgram("/proc/self/exe", dst); err != nil || !changed {
		t.Fatal(changed, err)
	}
	before, err := os.Stat(dst)
	if err != nil || before.Mode().Perm() != 0o755 {
		t.Fatal(before, err)
	}
	if changed, err := CopyProgram("/proc/self/exe", dst); err != nil || changed {
		t.Error(changed, err)
	}
	other := filepath.Join(t.TempDir(), "other")
	if err := os.WriteFile(other, []byte("#!/bin/sh\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	if changed, err := CopyProgram(other, dst); err != nil || !changed {
		t.Error(changed, err)
	}
	if after, err := os.Stat(dst); err != nil || os.SameFile(before, after) {
		t.Errorf("it is the same file: %v", err)
	}
}

// TestFailedWaits: what was rolled back is tried again later and later, and at once
// when it is something else.
func TestFailedWaits(t *testing.T) {
	f := failed{Digest: "a", Error: "it broke", At: time.Now().Add(-15 * time.Minute), Times: 1}
	if err := f.wait("a"); err != nil {
		t.Errorf("after a quarter of an hour: %v", err)
	}
	f.Times = 2
	var p *Problem
	if err := f.wait("a"); !errors.As(err, &p) || p.Reason != ReasonRolledBack || !strings.Contains(err.Error(), "it broke") {
		t.Errorf("the second time: %v", err)
	}
	if err := f.wait("b"); err != nil {
		t.Errorf("something else: %v", err)
	}
	f.Times, f.At = 1000, time.Now().Add(-25*time.Hour)
	if err := f.wait("a"); err != nil {
		t.Errorf("after a day: %v", err)
	}
}

func TestNewRefuses(t *testing.T) {
	for _, dir := range []string{"", "relative", "/a/../b", "/with space", `/quo"te`} {
		if _, err := New(t.Context(), Options{Dir: dir}); err == nil || !strings.Contains(err.Error(), "absolute path") {
			t.Errorf("%q: %v", dir, err)
		}
	}
	if err := ValidCheck("kernel"); err == nil || !strings.Contains(err.Error(), "erofs") {
		t.Error(err)
	}
}
