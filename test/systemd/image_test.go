package systemd

import (
	"archive/tar"
	"bytes"
	"crypto/sha256"
	"fmt"
	"io"
	"math/rand/v2"
	"os/exec"
	"testing"

	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/tarball"

	"github.com/apparate/apparate/test/cluster"
)

// Files of the image: enough for a reader to find cold ones all the time.
const files, fileSize = 400, 96 << 10

// push pushes and accelerates an image with a shell and files in /data, and returns
// its reference and what `sha256sum FILE` prints for each.
func (n *node) push(t *testing.T) (ref string, sums []string) {
	t.Helper()
	base, err := cluster.Busybox(t.Context(), t.Output())
	if err != nil {
		t.Fatal(err)
	}
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	random := rand.NewChaCha8([32]byte{7})
	if err := w.WriteHeader(&tar.Header{Name: "data/", Mode: 0o755, Typeflag: tar.TypeDir}); err != nil {
		t.Fatal(err)
	}
	for i := range files {
		content := make([]byte, fileSize)
		_, _ = random.Read(content) // never fails
		name := fmt.Sprintf("data/f%03d", i)
		if err := w.WriteHeader(&tar.Header{Name: name, Mode: 0o644, Size: fileSize, Typeflag: tar.TypeReg}); err != nil {
			t.Fatal(err)
		}
		if _, err := w.Write(content); err != nil {
			t.Fatal(err)
		}
		sums = append(sums, fmt.Sprintf("%x  /%s", sha256.Sum256(content), name))
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	data, err := tarball.LayerFromOpener(func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(b.Bytes())), nil })
	if err != nil {
		t.Fatal(err)
	}
	var img v1.Image
	if img, err = mutate.AppendLayers(base, data); err != nil {
		t.Fatal(err)
	}
	ref = n.reg.Host() + "/app:v1"
	tag, err := name.ParseReference(ref)
	if err != nil {
		t.Fatal(err)
	}
	if err := remote.Write(tag, img); err != nil {
		t.Fatal(err)
	}
	if out, err := exec.CommandContext(t.Context(), n.apparate, "convert", ref).CombinedOutput(); err != nil {
		t.Fatalf("apparate convert: %v: %s", err, out)
	}
	return ref + "-apparate", sums
}
