// Package formats keeps a sample of every layer format that was ever written,
// for ever. The tests here show that today's encoder still gives the same bytes
// for the current version, and that layers of all versions can still be read.
//
// A sample NAME of version V is in testdata/V:
//
//	NAME.tar.gz    the source; what is compressed here is the tar alone
//	NAME.estargz   the layer
//	NAME.toc.json  its TOC, for people to read in a diff
//	NAME.json      digests and sizes, as the encoder reported them
//
// "go test ./test/formats -update" writes the samples of the current version
// anew, and new sources where there are none. A change of the bytes needs a new
// image.Format, a new directory, and the old one left alone: the same source
// must not lead to two different layers under one name.
package formats

import (
	"archive/tar"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/containerd/stargz-snapshotter/estargz"
	"github.com/klauspost/compress/gzip"
	"github.com/opencontainers/go-digest"

	"github.com/apparate/apparate/api/image"
	"github.com/apparate/apparate/api/layerindex"
	"github.com/apparate/apparate/converter/encode"
	"github.com/apparate/apparate/snapshotter/toc"
)

var update = flag.Bool("update", false, "write the samples of the current version anew")

// current is the directory of the format that image.Format names.
const current = "testdata/v2"

// samples are the layers that are kept, and how they are encoded.
func samples() map[string]struct {
	entries []entry
	options encode.Options
} {
	type sample = struct {
		entries []entry
		options encode.Options
	}
	return map[string]sample{
		"everything": {everything(), encode.Options{}},
		"large":      {[]entry{reg("large", text(900<<10)), reg("exact", text(256<<10)), reg("more", text(256<<10+1)), reg("after", "after")}, encode.Options{}},
		"small-cuts": {everything(), encode.Options{ChunkSize: 1000, GroupSize: 500}},
		"no-groups":  {everything(), encode.Options{GroupSize: -1}},
		"empty":      {nil, encode.Options{}},
	}
}

// entry is one entry of a source.
type entry struct {
	h    tar.Header
	body string
}

func reg(name, body string) entry {
	return entry{tar.Header{Typeflag: tar.TypeReg, Name: name, Mode: 0o644, ModTime: time.Unix(1700000000, 0)}, body}
}

// text is n bytes that compress about as well as a program does.
func text(n int) string {
	var b strings.Builder
	for i := uint32(1); b.Len() < n; i++ {
		fmt.Fprintf(&b, "%x line %d of a text\n", i*2654435761, i)
	}
	return b.String()[:n]
}

// everything has all that a TOC can say.
func everything() []entry {
	other := func(typ byte, name string, f func(*tar.Header)) entry {
		e := reg(name, "")
		e.h.Typeflag = typ
		if f != nil {
			f(&e.h)
		}
		return e
	}
	special := other(tar.TypeReg, "special", func(h *tar.Header) {
		h.Mode, h.Uid, h.Gid, h.Uname, h.Gname = 0o7755, 1000, 4294967294, "someone", "group"
		h.ModTime, h.Format = time.Unix(1600000000, 123456789), tar.FormatPAX
		h.PAXRecords = map[string]string{"SCHILY.xattr.security.capability": "\x01\x00\x00\x02\x00 ", "SCHILY.xattr.user.empty": "", "VENDOR.x": "kept"}
	})
	special.body = "special"
	all := []entry{
		other(tar.TypeDir, "./", func(h *tar.Header) { h.Mode = 0o1777 }), special,
		reg("empty", ""), reg(strings.Repeat("deep/", 50)+"file", "deep"), reg("äöü 名前", "utf-8"),
		other(tar.TypeLink, "hard", func(h *tar.Header) { h.Linkname = "special" }),
		other(tar.TypeSymlink, "sym", func(h *tar.Header) { h.Linkname = "../<elsewhere>" }),
		other(tar.TypeChar, "null", func(h *tar.Header) { h.Devmajor, h.Devminor = 1, 3 }),
		other(tar.TypeBlock, "disk", func(h *tar.Header) { h.Devmajor, h.Devminor = 8, 300 }),
		other(tar.TypeFifo, "fifo", nil),
		other(tar.TypeReg, "epoch", func(h *tar.Header) { h.ModTime = time.Unix(0, 0) }),
		other(tar.TypeReg, "old", func(h *tar.Header) { h.ModTime, h.Format = time.Unix(-1, 500), tar.FormatPAX }),
		reg(".wh.gone", ""), reg("deep/.wh..wh..opq", ""), reg("twice", "first"), reg("twice", "second"),
	}
	for i := range 40 {
		all = append(all, reg(fmt.Sprintf("small/%02d", i), text(i*200)))
	}
	return all
}

// source returns a sample's tar. It is read from the file, so that another
// version of archive/tar cannot change it.
func source(t *testing.T, name string, entries []entry) []byte {
	t.Helper()
	file := filepath.Join(current, name+".tar.gz")
	if _, err := os.Stat(file); errors.Is(err, os.ErrNotExist) && *update {
		var b bytes.Buffer
		zw := gzip.NewWriter(&b)
		tw := tar.NewWriter(zw)
		for _, e := range entries {
			e.h.Size = int64(len(e.body))
			if err := tw.WriteHeader(&e.h); err != nil {
				t.Fatal(err)
			}
			if _, err := io.WriteString(tw, e.body); err != nil {
				t.Fatal(err)
			}
		}
		if err := errors.Join(tw.Close(), zw.Close(), os.WriteFile(file, b.Bytes(), 0o644)); err != nil {
			t.Fatal(err)
		}
	}
	return gunzip(t, read(t, file))
}

func read(t *testing.T, file string) []byte {
	t.Helper()
	b, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func gunzip(t *testing.T, b []byte) []byte {
	t.Helper()
	r, err := gzip.NewReader(bytes.NewReader(b))
	if err != nil {
		t.Fatal(err)
	}
	out, err := io.ReadAll(r)
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// tocJSON is the text of a layer's TOC.
func tocJSON(t *testing.T, blob []byte, l encode.Layer) []byte {
	t.Helper()
	r := tar.NewReader(bytes.NewReader(gunzip(t, blob[l.TOCOffset:l.TOCOffset+l.TOCSize])))
	if _, err := r.Next(); err != nil {
		t.Fatal(err)
	}
	b, err := io.ReadAll(r)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// TestSameBytes: today's encoder writes the samples of the current version.
func TestSameBytes(t *testing.T) {
	if want := "estargz/2"; image.Format != want {
		t.Fatalf("image.Format is %q: give it samples of its own, and this test the new directory", image.Format)
	}
	for name, s := range samples() {
		t.Run(name, func(t *testing.T) {
			var out bytes.Buffer
			l, err := encode.Encode(context.Background(), &out, bytes.NewReader(source(t, name, s.entries)), s.options)
			if err != nil {
				t.Fatal(err)
			}
			report, err := json.MarshalIndent(l, "", "  ")
			if err != nil {
				t.Fatal(err)
			}
			for ext, got := range map[string][]byte{".estargz": out.Bytes(), ".toc.json": tocJSON(t, out.Bytes(), l), ".json": append(report, '\n')} {
				file := filepath.Join(current, name+ext)
				if *update {
					if err := os.WriteFile(file, got, 0o644); err != nil {
						t.Fatal(err)
					}
				}
				if !bytes.Equal(got, read(t, file)) {
					t.Errorf("%s: the encoder gives other bytes than it did: see the package's comment", file)
				}
			}
		})
	}
}

// kept lists the samples of all versions, without their extension.
func kept(t *testing.T) []string {
	t.Helper()
	files, err := filepath.Glob("testdata/v*/*.estargz")
	if err != nil || len(files) == 0 {
		t.Fatalf("no samples: %v", err)
	}
	for i, f := range files {
		files[i] = strings.TrimSuffix(f, ".estargz")
	}
	return files
}

func layerOf(t *testing.T, base string) encode.Layer {
	t.Helper()
	var l encode.Layer
	if err := json.Unmarshal(read(t, base+".json"), &l); err != nil {
		t.Fatal(err)
	}
	return l
}

// contents are a source's files by clean name; the last of a name counts.
func contents(t *testing.T, base string) map[string]string {
	t.Helper()
	files := map[string]string{}
	r := tar.NewReader(bytes.NewReader(gunzip(t, read(t, base+".tar.gz"))))
	for {
		h, err := r.Next()
		if errors.Is(err, io.EOF) {
			return files
		}
		if err != nil {
			t.Fatal(err)
		}
		b, err := io.ReadAll(r)
		if err != nil {
			t.Fatal(err)
		}
		if h.Typeflag == tar.TypeReg {
			files[encode.CleanName(h.Name)] = string(b)
		}
	}
}

// TestKeptByOurReader: our parser indexes every sample, and the chunks are where
// it says.
func TestKeptByOurReader(t *testing.T) {
	for _, base := range kept(t) {
		t.Run(base, func(t *testing.T) {
			blob, l := read(t, base+".estargz"), layerOf(t, base)
			x, err := toc.Parse(blob[l.TOCOffset:l.TOCOffset+l.TOCSize], l.TOCDigest, l.TOCOffset)
			if err != nil {
				t.Fatal(err)
			}
			if l.IndexDigest != "" {
				payload, err := layerindex.Payload(bytes.Clone(blob[l.IndexOffset : l.IndexOffset+l.IndexSize]))
				if err != nil {
					t.Fatal(err)
				}
				if fast, err := toc.ParseIndex(payload, l.IndexDigest); err != nil || !reflect.DeepEqual(fast, x) {
					t.Errorf("the layer index is not the TOC, %v", err)
				}
			}
			if len(x.Entries) != l.Entries {
				t.Errorf("%d entries, want %d", len(x.Entries), l.Entries)
			}
			device := make([]byte, x.DataSize)
			for i, c := range x.Chunks {
				m := x.Members[c.Member]
				plain := gunzip(t, blob[m.Offset:m.Offset+m.Size])
				got := plain[c.Inner : c.Inner+c.Size]
				if digest.FromBytes(got).Encoded() != fmt.Sprintf("%x", c.Digest) {
					t.Errorf("chunk %d is not at %d+%d", i, m.Offset, c.Inner)
				}
				copy(device[c.Addr:], got)
			}
			want := contents(t, base)
			last := map[string]toc.Entry{}
			for _, e := range x.Entries {
				last[e.Path] = e
			}
			for name, body := range want {
				e := last[name]
				if e.Type != toc.Reg || string(device[e.Addr:e.Addr+e.Size]) != body {
					t.Errorf("%q has other content", name)
				}
			}
		})
	}
}

// TestKeptByStargz: stargz's own library reads every sample.
func TestKeptByStargz(t *testing.T) {
	for _, base := range kept(t) {
		t.Run(base, func(t *testing.T) {
			blob, l := read(t, base+".estargz"), layerOf(t, base)
			r, err := estargz.Open(io.NewSectionReader(bytes.NewReader(blob), 0, int64(len(blob))))
			if err != nil {
				t.Fatal(err)
			}
			if r.TOCDigest() != l.TOCDigest || digest.FromBytes(blob) != l.Digest || digest.FromBytes(gunzip(t, blob)) != l.DiffID {
				t.Error("digests differ from what was reported")
			}
			for name, body := range contents(t, base) {
				f, err := r.OpenFile(name)
				if err != nil {
					t.Error(err)
					continue
				}
				if b, err := io.ReadAll(f); err != nil || string(b) != body {
					t.Errorf("%q has other content, %v", name, err)
				}
			}
		})
	}
}

// TestStargzReadBySelf: layers that stargz's writer makes, with and without
// shared members, are indexed by our parser and can be encoded again.
func TestStargzReadBySelf(t *testing.T) {
	src := gunzip(t, read(t, current+"/everything.tar.gz"))
	for name, opts := range map[string][]estargz.Option{
		"default": nil, "shared": {estargz.WithMinChunkSize(4 << 10)}, "small chunks": {estargz.WithChunkSize(1000)},
		"landmark": {estargz.WithPrioritizedFiles([]string{"special"})},
	} {
		t.Run(name, func(t *testing.T) {
			b, err := estargz.Build(io.NewSectionReader(bytes.NewReader(src), 0, int64(len(src))), opts...)
			if err != nil {
				t.Fatal(err)
			}
			blob, err := io.ReadAll(b)
			if err := errors.Join(err, b.Close()); err != nil {
				t.Fatal(err)
			}
			off, size, err := estargz.OpenFooter(io.NewSectionReader(bytes.NewReader(blob), 0, int64(len(blob))))
			if err != nil {
				t.Fatal(err)
			}
			x, err := toc.Parse(blob[off:int64(len(blob))-size], b.TOCDigest(), off)
			if err != nil {
				t.Fatal(err)
			}
			var out bytes.Buffer
			l, err := encode.Encode(context.Background(), &out, bytes.NewReader(gunzip(t, blob)), encode.Options{})
			if err != nil || l.Entries != len(x.Entries) {
				t.Errorf("encoded again: %d entries, want %d, %v", l.Entries, len(x.Entries), err)
			}
		})
	}
}
