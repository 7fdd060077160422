package main

import (
	"log"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/registry"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/layout"
	"github.com/google/go-containerregistry/pkg/v1/remote"
)

// What is written and what is pushed are one image; the next one takes its place.
func TestRun(t *testing.T) {
	s := httptest.NewServer(registry.New(registry.Logger(log.New(t.Output(), "", 0))))
	t.Cleanup(s.Close)
	out, ref := filepath.Join(t.TempDir(), "image"), strings.TrimPrefix(s.URL, "http://")+"/apparate:1"
	t.Setenv("SOURCE_DATE_EPOCH", "1000000000")
	if err := run(t.Context(), []string{"--out", out, "--push", ref, "--plain-http"}); err != nil {
		t.Fatal(err)
	}
	written := func() v1.Hash {
		t.Helper()
		l, err := layout.ImageIndexFromPath(out)
		if err != nil {
			t.Fatal(err)
		}
		m, err := l.IndexManifest()
		if err != nil || len(m.Manifests) != 1 {
			t.Fatalf("%+v, %v", m, err)
		}
		return m.Manifests[0].Digest
	}
	r, err := name.ParseReference(ref)
	if err != nil {
		t.Fatal(err)
	}
	img, err := remote.Image(r)
	if err != nil {
		t.Fatal(err)
	}
	if d, err := img.Digest(); err != nil || d != written() {
		t.Errorf("pushed is %s, written %s, %v", d, written(), err)
	}
	if c, err := img.ConfigFile(); err != nil || c.Created.Unix() != 1e9 {
		t.Errorf("%+v, %v", c, err)
	}
	if err := write(out, empty.Image); err != nil {
		t.Fatal(err)
	}
	if d, err := empty.Image.Digest(); err != nil || d != written() {
		t.Errorf("the next one is %s, written %s, %v", d, written(), err)
	}
}

// Nothing that is no layout is removed, and a command line that makes no sense is told
// before anything is built.
func TestRefused(t *testing.T) {
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "mine"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := write(dir, nil); err == nil || !strings.Contains(err.Error(), "other files") {
		t.Errorf("a directory of others: %v", err)
	}
	if _, err := os.Stat(filepath.Join(dir, "mine")); err != nil {
		t.Error(err)
	}
	for want, args := range map[string][]string{"--push: ": {"--push", "UPPER:x"}, "is no flag": {"x"}, "not defined": {"--none"}} {
		if err := run(t.Context(), args); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: %v", args, err)
		}
	}
	t.Setenv("SOURCE_DATE_EPOCH", "today")
	if err := run(t.Context(), nil); err == nil || !strings.Contains(err.Error(), "SOURCE_DATE_EPOCH") {
		t.Errorf("an odd time: %v", err)
	}
}
