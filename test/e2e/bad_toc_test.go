package e2e

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"crypto/sha256"
	"fmt"
	"io"
	"math"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/containerd/stargz-snapshotter/estargz"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/static"
	"github.com/google/go-containerregistry/pkg/v1/types"
	"github.com/opencontainers/go-digest"

	"github.com/apparate/apparate/test/registry"
)

// tocContent is the only content of the layers below: one gzip member.
const tocContent = "hello, world\n"

// stargz is a layer of tocContent, with a TOC of these entries.
func stargz(t *testing.T, entries ...*estargz.TOCEntry) (blob []byte, toc digest.Digest) {
	t.Helper()
	var b bytes.Buffer
	z := gzip.NewWriter(&b)
	_, err := io.WriteString(z, tocContent)
	if err == nil {
		err = z.Close()
	}
	if err != nil {
		t.Fatal(err)
	}
	d, err := estargz.NewGzipCompressor().WriteTOCAndFooter(&b, int64(b.Len()), &estargz.JTOC{Version: 1, Entries: entries}, nil)
	if err != nil {
		t.Fatal(err)
	}
	return b.Bytes(), d
}

// regular is an entry of a file with tocContent.
func regular(name string) *estargz.TOCEntry {
	d := digest.FromString(tocContent).String()
	return &estargz.TOCEntry{Name: name, Type: "reg", Size: int64(len(tocContent)), Mode: 0o644, Digest: d, ChunkDigest: d}
}

// withTOC is an image of one layer whose TOC digest the manifest knows.
func withTOC(t *testing.T, blob []byte, toc digest.Digest) v1.Image {
	t.Helper()
	oci := mutate.ConfigMediaType(mutate.MediaType(empty.Image, types.OCIManifestSchema1), types.OCIConfigJSON)
	img, err := mutate.Append(oci, mutate.Addendum{
		Layer: static.NewLayer(blob, types.OCILayer), MediaType: types.OCILayer,
		Annotations: map[string]string{estargz.TOCJSONDigestAnnotation: toc.String()},
	})
	if err != nil {
		t.Fatal(err)
	}
	return img
}

// big is a file of 60 MiB at an offset of the only gzip member.
func big(name string, inner int64) *estargz.TOCEntry {
	e := regular(name)
	e.Size, e.InnerOffset = 60<<20, inner
	return e
}

// deep are n directories in two thousand others each.
func deep(n int) (list []*estargz.TOCEntry) {
	for i := range n {
		list = append(list, &estargz.TOCEntry{Name: fmt.Sprintf("%d%s", i, strings.Repeat("/d", 2000)), Type: "dir"})
	}
	return list
}

// A TOC with the right digest that means harm is refused, whatever it wants.
func TestBadTOC(t *testing.T) {
	reg := registry.New(t)
	with := func(change func(e *estargz.TOCEntry)) []*estargz.TOCEntry {
		e := regular("file")
		change(e)
		return []*estargz.TOCEntry{{Name: "first", Type: "dir"}, e}
	}
	link := func(name, to string) *estargz.TOCEntry {
		return &estargz.TOCEntry{Name: name, Type: "hardlink", LinkName: to}
	}
	chunk := func(name string, at, size int64) *estargz.TOCEntry {
		return &estargz.TOCEntry{Name: name, Type: "chunk", ChunkOffset: at, ChunkSize: size, ChunkDigest: digest.FromString("x").String()}
	}
	for _, c := range []struct {
		name    string
		entries []*estargz.TOCEntry
		says    []string
	}{
		{"path escape", []*estargz.TOCEntry{regular("../file")}, []string{`"../file"`, "leaves the root"}},
		{"path escape, deep", []*estargz.TOCEntry{regular("a/../../../etc/passwd")}, []string{"leaves the root"}},
		{"hard link out", []*estargz.TOCEntry{link("file", "../../etc/shadow")}, []string{"leaves the root"}},
		{"hard link loop", []*estargz.TOCEntry{link("a", "b"), link("b", "a")}, []string{`"a"`, "hard link"}},
		{"hard link to itself", []*estargz.TOCEntry{link("a", "a")}, []string{`"a"`, "hard link"}},
		{"hard link to a directory", []*estargz.TOCEntry{{Name: "d", Type: "dir"}, link("d/up", "d")}, []string{`"d/up"`, "directory"}},
		{"through a symlink", []*estargz.TOCEntry{{Name: "etc", Type: "symlink", LinkName: "/etc"}, regular("etc/passwd")}, []string{"etc"}},
		{"below a file", []*estargz.TOCEntry{regular("a"), {Name: "a/b", Type: "dir"}}, []string{"a/b", "passes a file"}},
		{"negative size", with(func(e *estargz.TOCEntry) { e.Size = -1 }), []string{`"file"`, "negative"}},
		{"huge size", with(func(e *estargz.TOCEntry) { e.Size = 1 << 62 }), []string{`"file"`, "too large"}},
		{"huge chunk", with(func(e *estargz.TOCEntry) { e.Size = 1 << 40 }), []string{`"file"`, "limit"}},
		{"negative offset", with(func(e *estargz.TOCEntry) { e.Offset = -4096 }), []string{`"file"`, "outside the blob"}},
		{"offset beyond the blob", with(func(e *estargz.TOCEntry) { e.Offset = 1 << 50 }), []string{`"file"`, "outside the blob"}},
		{"inner offset", with(func(e *estargz.TOCEntry) { e.InnerOffset = math.MaxInt64 - 5 }), []string{`"file"`, "into a member"}},
		{"gap between chunks", append(with(func(e *estargz.TOCEntry) { e.ChunkSize = 3 }), chunk("file", 5, 0)), []string{`"file"`, "begins at 5"}},
		{"chunks end early", with(func(e *estargz.TOCEntry) { e.ChunkSize = 3 }), []string{`"file"`, "end before"}},
		{"chunks overlap", append(with(func(e *estargz.TOCEntry) { e.ChunkSize = 6 }), chunk("file", 3, 0)), []string{`"file"`, "begins at 3"}},
		{"chunk of nothing", []*estargz.TOCEntry{chunk("file", 0, 5)}, []string{`"file"`, "not being listed"}},
		{"no digest", with(func(e *estargz.TOCEntry) { e.ChunkDigest, e.Digest = "", "" }), []string{`"file"`, "without digest"}},
		{"owner", with(func(e *estargz.TOCEntry) { e.UID = -1 }), []string{`"file"`, "owner"}},
		{"device", []*estargz.TOCEntry{{Name: "dev", Type: "char", DevMajor: 1 << 30}}, []string{`"dev"`, "no device"}},
		{"overlap", []*estargz.TOCEntry{regular("first"), regular("file")}, []string{`"file"`, "overlaps"}},
		{"huge member", []*estargz.TOCEntry{big("a", 0), big("b", 60<<20)}, []string{"memory"}},
		{"deep paths", deep(1000), []string{"too many directories"}},
		{"long name", []*estargz.TOCEntry{regular(strings.Repeat("n", 300))}, []string{"too long"}},
		{"name of lines", []*estargz.TOCEntry{regular("a\nb\x1b[31m/../../..")}, []string{`a\nb\x1b`, "leaves the root"}},
		{"file as root", []*estargz.TOCEntry{regular("./")}, []string{"root"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			p := newPlace(t)
			blob, toc := stargz(t, c.entries...)
			ref := push(t, reg, "hostile:v1", withTOC(t, blob, toc))
			cache := filepath.Join(p.dir, "cache")
			o := p.run(t, "mount", ref, p.mnt(), "--cache", cache)
			o.refused(t, append(c.says, "layer sha256:", "pull the image the ordinary way")...)
			left, err := filepath.Glob(filepath.Join(cache, "*", "*", "*"))
			if err != nil || len(left) > 0 {
				t.Errorf("left in the cache: %v %v", left, err)
			}
		})
	}
}

// Names that occur twice are no harm: the last one counts, as in a tar.
func TestBadTOCDuplicates(t *testing.T) {
	reg := registry.New(t)
	blob, toc := stargz(t, regular("same"), &estargz.TOCEntry{Name: "same", Type: "dir", Mode: 0o755},
		&estargz.TOCEntry{Name: "./same", Type: "symlink", LinkName: "other"}, &estargz.TOCEntry{Name: "same/", Type: "fifo", Mode: 0o600})
	p := newPlace(t)
	m := p.mount(t, push(t, reg, "twice:v1", withTOC(t, blob, toc)))
	list, err := os.ReadDir(m.dir)
	if err != nil || len(list) != 1 || list[0].Type() != os.ModeNamedPipe {
		t.Errorf("got %v, %v", list, err)
	}
	m.end(t)
}

// Footers and archives that are none, and digests that do not fit.
func TestBadBlob(t *testing.T) {
	reg := registry.New(t)
	good, toc := stargz(t, regular("file"))
	footer := len(good) - 51
	edit := func(at int, to string) []byte {
		b := bytes.Clone(good)
		copy(b[at:], to)
		return b
	}
	for _, c := range []struct {
		name string
		blob []byte
		toc  digest.Digest
		says []string
	}{
		{"other digest", good, digest.FromString("x"), []string{"digest"}},
		{"no footer", good[:footer], toc, []string{"no eStargz footer"}},
		{"short", []byte("x"), toc, []string{"no room for a footer"}},
		{"TOC beyond the blob", edit(footer+16, "00000000ffffffff"), toc, []string{"the footer puts the TOC"}},
		{"TOC at a negative offset", edit(footer+16, "ffffffffffffff00"), toc, []string{"no number"}},
		{"TOC somewhere else", edit(footer+16, "0000000000000003"), toc, []string{"damaged"}},
		{"TOC cut", append(bytes.Clone(good[:footer-30]), good[footer:]...), toc, []string{"damaged"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			p := newPlace(t)
			ref := push(t, reg, "hostile:v1", withTOC(t, c.blob, c.toc))
			p.run(t, "mount", ref, p.mnt()).refused(t, append(c.says, "layer sha256:", "pull the image the ordinary way")...)
		})
	}
}

// bomb is a layer whose TOC has count entries that are each the same JSON, a
// multiple of 10 000. The compressed TOC is small: one gzip member with a lot of
// entries, repeated.
func bomb(t *testing.T, entry string, count int) (blob []byte, toc digest.Digest) {
	t.Helper()
	const each = 10_000 // this process's memory would be counted as the program's
	sum := sha256.New()
	member := func(write func(w io.Writer) error) []byte {
		var b bytes.Buffer
		z, err := gzip.NewWriterLevel(&b, gzip.BestSpeed)
		if err == nil {
			err = write(z)
		}
		if err == nil {
			err = z.Close()
		}
		if err != nil {
			t.Fatal(err)
		}
		return b.Bytes()
	}
	text := func(s string) []byte {
		_, _ = io.WriteString(sum, s) // a hash never fails
		return member(func(w io.Writer) error { _, err := io.WriteString(w, s); return err })
	}
	const head, tail = `{"version":1,"entries":[`, `{"name":"x","type":"dir"}]}`
	size := int64(len(head) + len(tail) + len(entry)*count)
	var out bytes.Buffer
	out.Write(member(func(w io.Writer) error {
		return tar.NewWriter(w).WriteHeader(&tar.Header{Name: estargz.TOCTarName, Typeflag: tar.TypeReg, Size: size})
	}))
	out.Write(text(head))
	many := []byte(strings.Repeat(entry, each))
	packed := member(func(w io.Writer) error { _, err := w.Write(many); return err })
	for range count / each {
		out.Write(packed)
		_, _ = sum.Write(many) // a hash never fails
	}
	out.Write(text(tail))
	out.Write(member(func(w io.Writer) error { _, err := w.Write(make([]byte, 512-size%512+1024)); return err }))

	var ending bytes.Buffer
	if _, err := estargz.NewGzipCompressor().WriteTOCAndFooter(&ending, 0, &estargz.JTOC{}, nil); err != nil {
		t.Fatal(err)
	}
	out.Write(ending.Bytes()[ending.Len()-estargz.FooterSize:])
	return out.Bytes(), digest.NewDigest(digest.SHA256, sum)
}

// A hundred million entries in a layer of some megabytes are refused before
// they use up the node's memory.
func TestBadTOCBomb(t *testing.T) {
	reg := registry.New(t)
	for _, c := range []struct {
		name, entry string
		count       int
		says        []string
	}{
		{"a hundred million", `{"name":"d","type":"dir"},`, 100_000_000, []string{"1073741824", "limit"}},
		{"fifty million, short", `{"type":"dir"},`, 50_000_000, []string{"empty"}},
		{"forty million, real", `{"name":"d","type":"dir"},`, 40_000_000, []string{"more than", "entries"}},
		{"of deep paths", fmt.Sprintf(`{"name":%q,"type":"dir"},`, strings.Repeat("d/", 500)), 200_000, []string{"more than", "names"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			p := newPlace(t)
			blob, toc := bomb(t, c.entry, c.count)
			ref := push(t, reg, "bomb:v1", withTOC(t, blob, toc))
			o := p.run(t, "mount", ref, p.mnt())
			o.refused(t, append(c.says, "layer sha256:")...)
			if o.peak == 0 || o.peak > 500<<20 {
				t.Errorf("%d MB of memory were used", o.peak>>20)
			}
			t.Logf("blob of %d bytes, peak %d MB", len(blob), o.peak>>20)
		})
	}
}
