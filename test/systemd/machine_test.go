package systemd

import (
	"os"
	"path/filepath"
	"testing"
)

// TestSweep: what a machine leaves whose owner was killed goes when the next is made.
func TestSweep(t *testing.T) {
	m := Start(t, Options{})
	left, err := New(t.Context(), t.Output(), Options{})
	if err != nil {
		t.Fatal(err)
	}
	if err := left.Boot(t.Context()); err != nil {
		t.Fatal(err)
	}
	_ = left.cmd.Process.Kill() // as the kernel does then
	<-left.done
	if err := left.lock.Close(); err != nil {
		t.Fatal(err)
	}
	next, err := New(t.Context(), t.Output(), Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := next.Close(); err != nil {
			t.Error(err)
		}
	}()
	all, err := hierarchies()
	if err != nil {
		t.Fatal(err)
	}
	dirs := []string{left.dir}
	for _, h := range all {
		dirs = append(dirs, filepath.Join(h, left.Name))
	}
	for _, d := range dirs {
		if _, err := os.Stat(d); !os.IsNotExist(err) {
			t.Errorf("left is %s: %v", d, err)
		}
	}
	if _, err := m.Exec(t.Context(), "true"); err != nil {
		t.Errorf("the one that has an owner: %v", err)
	}
}
