package interop

import (
	"archive/tar"
	"bytes"
	"errors"
	"fmt"
	"io"
	"path"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/containerd/stargz-snapshotter/estargz"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/opencontainers/go-digest"

	"github.com/apparate/apparate/converter/encode"
	"github.com/apparate/apparate/test/images"
	"github.com/apparate/apparate/test/registry"
	"github.com/apparate/apparate/test/tree"
)

// limits is what stargz-snapshotter shows otherwise than containerd unpacks, of
// one image. Everything else must be equal.
type limits struct {
	// trusted are attributes that it shows, by path. containerd leaves out all
	// "trusted." ones when it unpacks.
	trusted map[string]string
	// clock are directories whose time is that of the unpack.
	clock []string
	// lines are the differences as Diff prints them, sorted by path.
	lines []string
}

// testCase is an image to be tried.
type testCase struct {
	img    v1.Image
	limits limits
}

func cases(t *testing.T) map[string]testCase {
	t.Helper()
	mixed, err := images.Mixed()
	if err != nil {
		t.Fatal(err)
	}
	var weird [2]v1.Image // the names in number 2 cannot be in a TOC
	for i := range weird {
		if weird[i], err = images.Weird(i); err != nil {
			t.Fatal(err)
		}
	}
	return map[string]testCase{
		"mixed": {img: mixed},
		"weird0": {weird[0], limits{
			trusted: map[string]string{"xattr": "trusted.dir", "xattr/link": "trusted.onlink", "xattr/many": "trusted.t"},
			lines: []string{
				// A hard link's own header may name another mode and owner. containerd
				// applies it to the inode, the peer does not look at it.
				"hard/deeper/third: mode is 100640, want 100644",
				"hard/deeper/third: uid is 1000, want 0",
				"hard/deeper/third: gid is 1001, want 0",
				"hard/first: mode is 100640, want 100644",
				"hard/first: uid is 1000, want 0",
				"hard/first: gid is 1001, want 0",
				"hard/second: mode is 100640, want 100644",
				"hard/second: uid is 1000, want 0",
				"hard/second: gid is 1001, want 0",
				// containerd takes times before 1970 for 1970.
				"time/old: mtime is 1960-01-01T00:00:00Z, want 1970-01-01T00:00:00Z",
			},
		}},
		"weird1": {weird[1], limits{
			clock: []string{"opaque"},
			lines: []string{
				// The top layer has files in this directory, but no entry for it.
				// containerd gives such a directory the attributes it has below, the
				// peer those of a new one.
				"opaque: mode is 40755, want 40750",
				`opaque: xattrs is , want user.above="2" `,
			},
		}},
	}
}

// What we convert is mounted by stargz-snapshotter, layer by layer and stacked
// with overlayfs, and is the unpacked tree.
func TestPeerMountsOurImages(t *testing.T) {
	for name, c := range cases(t) {
		t.Run(name, func(t *testing.T) { peerMounts(t, name, c, encode.EStargz) })
		t.Run(name+" in zstd:chunked", func(t *testing.T) { peerMounts(t, name, c, encode.ZstdChunked) })
	}
}

func peerMounts(t *testing.T, name string, c testCase, format encode.Format) {
	t.Helper()
	ref := tree.AccelerateAs(t, registry.New(t), name+":v1", c.img, format)
	over := tree.Overlay(t, startPeer(t).mount(t, ref))
	began := time.Now().Add(-time.Second)
	want := tree.Unpacked(t, c.img, true)
	got, err := tree.Walk(over)
	if err != nil {
		t.Fatal(err)
	}
	for p, attr := range c.limits.trusted {
		if _, ok := got[p].Xattrs[attr]; !ok {
			t.Errorf("%s: no %s, which was a limit of the peer", p, attr)
		}
		delete(got[p].Xattrs, attr)
	}
	// The root of a container is its own, new directory.
	skip := append(tree.UnpackTimes(want, got, began), ". mtime")
	for _, p := range c.limits.clock {
		skip = append(skip, p+" mtime")
	}
	if diffs := tree.Diff(want, got, skip...); !slices.Equal(diffs, c.limits.lines) {
		t.Errorf("differences to the unpacked tree are\n%s\nwant\n%s", strings.Join(diffs, "\n"), strings.Join(c.limits.lines, "\n"))
	}
}

// The estargz package opens every layer of ours, and reads every file as it is in
// the tar.
func TestPeerReadsOurLayers(t *testing.T) {
	for name, c := range cases(t) {
		t.Run(name, func(t *testing.T) {
			converted := pull(t, tree.Accelerate(t, registry.New(t), name+":v1", c.img))
			m, err := converted.Manifest()
			if err != nil {
				t.Fatal(err)
			}
			for _, d := range m.Layers {
				l, err := converted.LayerByDigest(d.Digest)
				if err != nil {
					t.Fatal(err)
				}
				r := open(t, content(t, l.Compressed))
				if want := digest.Digest(d.Annotations[estargz.TOCJSONDigestAnnotation]); r.TOCDigest() != want {
					t.Errorf("TOC digest %s, the annotation says %s", r.TOCDigest(), want)
				}
				compare(t, r, content(t, l.Uncompressed))
			}
		})
	}
}

// The estargz package finds a digest for every chunk. Its check takes no layer
// in which files share a gzip member, such as its own WithMinChunkSize makes, so
// these are encoded without; stargz-snapshotter has another check, that does.
func TestPeerVerifiesOurLayers(t *testing.T) {
	for name, c := range cases(t) {
		t.Run(name, func(t *testing.T) {
			layers, err := c.img.Layers()
			if err != nil {
				t.Fatal(err)
			}
			for _, l := range layers {
				text := content(t, l.Uncompressed)
				var blob bytes.Buffer
				info, err := encode.Encode(t.Context(), &blob, bytes.NewReader(text), encode.Options{GroupSize: -1})
				if err != nil {
					t.Fatal(err)
				}
				r := open(t, blob.Bytes())
				if _, err := r.VerifyTOC(info.TOCDigest); err != nil {
					t.Error(err)
				}
				compare(t, r, text)
			}
		})
	}
}

// content reads a layer as one of its methods gives it.
func content(t *testing.T, of func() (io.ReadCloser, error)) []byte {
	t.Helper()
	rc, err := of()
	if err != nil {
		t.Fatal(err)
	}
	b, err := io.ReadAll(rc)
	if err := errors.Join(err, rc.Close()); err != nil {
		t.Fatal(err)
	}
	return b
}

func open(t *testing.T, blob []byte) *estargz.Reader {
	t.Helper()
	r, err := estargz.Open(io.NewSectionReader(bytes.NewReader(blob), 0, int64(len(blob))))
	if err != nil {
		t.Fatal(err)
	}
	return r
}

// compare reads the files of the tar text through r.
func compare(t *testing.T, r *estargz.Reader, text []byte) {
	t.Helper()
	want := map[string][]byte{} // of a name that occurs twice, the last
	in := tar.NewReader(bytes.NewReader(text))
	for {
		h, err := in.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		if h.Typeflag != tar.TypeReg || h.Name == estargz.TOCTarName {
			continue
		}
		if want[path.Clean(h.Name)], err = io.ReadAll(in); err != nil {
			t.Fatal(err)
		}
	}
	for name, b := range want {
		got, err := file(r, name)
		if err != nil {
			t.Errorf("%q: %v", name, err)
		} else if !bytes.Equal(got, b) {
			t.Errorf("%q: %d bytes that are not the tar's %d", name, len(got), len(b))
		}
	}
}

func file(r *estargz.Reader, name string) ([]byte, error) {
	s, err := r.OpenFile(name)
	if err != nil {
		return nil, fmt.Errorf("open: %w", err)
	}
	return io.ReadAll(s)
}

// The watchdog of these tests frees who waits for a peer that is stuck.
func TestAbortFreesReaders(t *testing.T) {
	reg := registry.New(t)
	p := startPeer(t)
	over := tree.Overlay(t, p.mount(t, tree.Accelerate(t, reg, "mixed:v1", cases(t)["mixed"].img)))
	reg.FailEvery(1, registry.Stall)
	begun, done := reg.Count(), make(chan error, 1)
	go func() {
		_, err := tree.Walk(over)
		done <- err
	}()
	for reg.Count() == begun {
		time.Sleep(time.Millisecond)
	}
	if err := p.abort(); err != nil {
		t.Fatal(err)
	}
	if err := <-done; err == nil {
		t.Error("files could be read that never came")
	}
	reg.Heal()
}
