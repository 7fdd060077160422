package pullsecret

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/go-logr/logr/funcr"
)

// TestFollow: what cannot be read changes nothing, and is told of once.
func TestFollow(t *testing.T) {
	var told []string
	f := &Follower{Path: filepath.Join(t.TempDir(), "list"), Log: funcr.New(func(_, args string) { told = append(told, args) }, funcr.Options{})}
	write := func(text string) {
		t.Helper()
		if err := os.WriteFile(f.Path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	for range 2 {
		if f.read() || f.Config() != nil {
			t.Fatal("there is a list without a file")
		}
	}
	if len(told) != 1 || !strings.Contains(told[0], "--pull-secrets") {
		t.Error(told)
	}
	write("")
	if f.read() || f.Config() != nil {
		t.Fatal("an empty file is a list")
	}
	write("[" + entry("") + "]")
	if !f.read() || f.read() || len(f.Config().Entries) != 1 {
		t.Fatal("the list is not read, or twice")
	}
	write("[" + hidden)
	if f.read() || len(f.Config().Entries) != 1 {
		t.Fatal("a broken list took the place of a good one")
	}
	if err := os.Remove(f.Path); err != nil {
		t.Fatal(err)
	}
	if f.read() || len(f.Config().Entries) != 1 {
		t.Fatal("a missing list took the place of a good one")
	}
	write("[]")
	if !f.read() || len(f.Config().Entries) != 0 {
		t.Fatal("an empty list is not taken")
	}
	if strings.Contains(strings.Join(told, "\n"), hidden) {
		t.Error("the password is in the log")
	}
}
