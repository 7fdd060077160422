package e2e

import (
	"strings"
	"testing"

	"github.com/apparate/apparate/test/node"
)

// A zstd:chunked image is checked, starts lazily, and is pulled the ordinary way by
// containerd's overlayfs; all of its files are right.
func TestZstdChunked(t *testing.T) {
	h := start(t, "--background-fetch-delay", "-1s")
	img, files := shell(t, 16, 1<<20)
	app := h.push(t, "app:v1", img)
	if _, err := run(t, "convert", app, "--format", "zstd"); err == nil || !strings.Contains(err.Error(), "zstd:chunked") {
		t.Errorf("an unknown format: %v", err)
	}
	if _, err := run(t, "convert", app, "--format", "zstd:chunked"); err != nil {
		t.Fatal(err)
	}
	ref := app + "-apparate"
	if out, err := run(t, "check", ref); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	h.reg.Forget()
	h.pull(t, ref)
	var whole int64
	for _, b := range files {
		whole += int64(len(b))
	}
	if got := h.reg.BlobBytes(); got > whole/4 {
		t.Errorf("a pull fetched %d bytes of an image with %d", got, whole)
	}
	const script = "cd /data && sha256sum *"
	if got := h.sh(t, ref, "lazy", script); got != sums(files) {
		t.Errorf("lazily there is %s", got)
	}
	if err := h.Pull(t.Context(), ref, node.Overlayfs); err != nil {
		t.Fatal(err)
	}
	c, err := h.Run(t.Context(), ref, node.Overlayfs, "eager", nil, "/bin/sh", "-c", script)
	if err != nil {
		t.Fatal(err)
	}
	wait(t, c)
	if c.Output() != sums(files) {
		t.Errorf("pulled there is %s", c.Output())
	}
}
