package e2e

import (
	"bytes"
	"encoding/binary"
	"encoding/hex"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/containerd/stargz-snapshotter/estargz"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/opencontainers/go-digest"
)

// On a node that cannot mount EROFS, containers of accelerated images start all
// the same: their layers are pulled the ordinary way.
func TestBadNodeWithoutEROFS(t *testing.T) {
	// In a user namespace FUSE can be mounted, and EROFS cannot.
	program := filepath.Join(t.TempDir(), "apparate")
	script := "#!/bin/sh\nexec unshare --user --map-root-user --mount " + commands[apparate] + ` "$@"` + "\n"
	if err := os.WriteFile(program, []byte(script), 0o755); err != nil {
		t.Fatal(err)
	}
	h := startWith(t, program)
	img, files := shell(t, 2, 300_000)
	ref := h.accelerate(t, "app:v1", img)
	h.pull(t, ref)
	if out := h.sh(t, ref, "ordinary", "cd /data && sha256sum *"); out != sums(files) {
		t.Errorf("wrong content: %s", out)
	}
	if !strings.Contains(h.Logs(), "pulled the ordinary way") {
		t.Error("the log does not say why nothing is lazy")
	}
	if out, err := run(t, "status", "--status-address", h.statusAddress()); err == nil || !strings.Contains(out, "lazy     no: probe EROFS") {
		t.Errorf("status says %q, %v", out, err)
	}
}

// A layer with a hostile TOC is pulled the ordinary way, and the log says why:
// its archive is what an ordinary runtime would have unpacked.
func TestBadNodeTOC(t *testing.T) {
	h := start(t, "--background-fetch-delay", "-1s")
	img, files := shell(t, 2, 300_000)
	ref := h.push(t, "hostile:v1", hostile(t, foreign(t, img)))
	h.pull(t, ref)
	if out := h.sh(t, ref, "hostile", "cd /data && sha256sum *"); out != sums(files) {
		t.Errorf("wrong content: %s", out)
	}
	if log := h.Logs(); !strings.Contains(log, "reason=toc_invalid") || !strings.Contains(log, "leaves the root") {
		t.Errorf("the log does not say that the TOC is invalid: %s", log)
	}
	if m := erofsMounts(t, h.SnapshotterRoot()); len(m) != 0 {
		t.Errorf("mounted: %v", m)
	}
}

// hostile gives every layer of img a TOC that leaves the root, with the right digest.
func hostile(t *testing.T, img v1.Image) v1.Image {
	t.Helper()
	return rebuilt(t, img, func(l v1.Layer) ([]byte, digest.Digest) {
		z := content(t, l.Compressed)
		var at [8]byte
		if _, err := hex.Decode(at[:], z[len(z)-estargz.FooterSize+16:][:16]); err != nil {
			t.Fatal(err)
		}
		off := int64(binary.BigEndian.Uint64(at[:]))
		b := bytes.NewBuffer(z[:off:off])
		toc := &estargz.JTOC{Version: 1, Entries: []*estargz.TOCEntry{{Name: "../../etc", Type: "dir", Mode: 0o777}}}
		d, err := estargz.NewGzipCompressor().WriteTOCAndFooter(b, off, toc, nil)
		if err != nil {
			t.Fatal(err)
		}
		return b.Bytes(), d
	})
}
