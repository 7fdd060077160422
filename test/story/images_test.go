package story

import (
	"archive/tar"
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"math/rand/v2"
	"strings"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/static"
	"github.com/google/go-containerregistry/pkg/v1/types"

	"github.com/apparate/apparate/test/cluster"
)

// coldFiles is how many files the image "cold" has that a reader reads one by one.
const coldFiles, coldSize = 1200, 24 << 10

// reading reads a file that nobody read before every tenth of a second, compares it,
// and says so. It ends with the list.
const reading = `i=0; while read -r sum file; do
  if got=$(sha256sum "/data/$file") && [ "${got%% *}" = "$sum" ]; then i=$((i+1)); echo "read $i"; else echo "ERROR $file: $got"; fi
  sleep 0.1
done </data/SUMS; echo "all read"; sleep 100000`

// coldImage is a shell that reads cold files for two minutes.
func coldImage(ctx context.Context, w *world) (v1.Image, error) {
	base, err := cluster.Busybox(ctx, w.t.Output(), "sh", "-c", reading)
	if err != nil {
		return nil, err
	}
	var text bytes.Buffer
	var sums strings.Builder
	out := tar.NewWriter(&text)
	add := func(name string, b []byte) error {
		if err := out.WriteHeader(&tar.Header{Name: "data/" + name, Mode: 0o644, Size: int64(len(b))}); err != nil {
			return err
		}
		_, err := out.Write(b)
		return err
	}
	random := rand.NewChaCha8([32]byte{1})
	for i := range coldFiles {
		b := make([]byte, coldSize)
		if _, err := random.Read(b); err != nil {
			return nil, err
		}
		name := fmt.Sprintf("%05d", i)
		fmt.Fprintf(&sums, "%x %s\n", sha256.Sum256(b), name)
		if err := add(name, b); err != nil {
			return nil, err
		}
	}
	if err := errors.Join(add("SUMS", []byte(sums.String())), out.Close()); err != nil {
		return nil, err
	}
	return mutate.AppendLayers(base, static.NewLayer(text.Bytes(), types.OCIUncompressedLayer))
}

// reader is a pod that reads cold files all the time.
type reader struct {
	w    *world
	name string
}

// read starts a pod with the image cold:1-apparate on a node.
func (w *world) read(name, node string) reader {
	w.t.Helper()
	w.kubectl(fmt.Sprintf(`
apiVersion: v1
kind: Pod
metadata: {name: %s, labels: {app: %[1]s}}
spec:
  nodeName: %s
  terminationGracePeriodSeconds: 0
  restartPolicy: Never
  containers: [{name: reader, image: "library/cold:1-apparate"}]
`, name, node), "apply", "-f", "-")
	w.podsReady("app="+name, time.Now())
	r := reader{w, name}
	r.goesOn(w)
	return r
}

// count is how many files it has read; an error that it met fails the test.
func (r reader) count(w *world) int {
	w.t.Helper()
	out := w.kubectl("", "logs", r.name)
	if i := strings.Index(out, "ERROR"); i >= 0 {
		w.t.Fatalf("the reader of cold files met an error: %s", out[i:])
	}
	return strings.Count(out, "read ")
}

// goesOn waits until it has read ten more.
func (r reader) goesOn(w *world) {
	w.t.Helper()
	const more = 10
	first := r.count(w)
	w.eventually("the reader to read", time.Minute, func(context.Context) error {
		if n := r.count(w); n < first+more {
			return fmt.Errorf("%d after %d", n, first)
		}
		return nil
	})
	if n := r.count(w); n >= coldFiles {
		w.t.Fatalf("the reader has read all %d files: none is cold any more", n)
	}
}

// end removes it.
func (r reader) end(w *world) {
	w.t.Helper()
	w.kubectl("", "delete", "pod", r.name, "--wait=true", "--timeout=60s")
}
