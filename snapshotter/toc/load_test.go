package toc

import (
	"bytes"
	"compress/gzip"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"reflect"
	"strings"
	"testing"

	"github.com/containerd/stargz-snapshotter/estargz"
	"github.com/klauspost/compress/zstd"
	"github.com/opencontainers/go-digest"

	"github.com/apparate/apparate/snapshotter/fetch"
)

// checkContent reads every chunk of x out of blob as a node would, and verifies it.
func checkContent(t *testing.T, x *Index, blob []byte) {
	t.Helper()
	for mi, m := range x.Members {
		plain := decompressMember(t, x, blob, m)
		for _, c := range x.Chunks[m.First : m.First+m.Count] {
			if c.Member != mi || sha256.Sum256(plain[c.Inner:c.Inner+c.Size]) != c.Digest {
				t.Fatalf("chunk %+v does not have its digest in member %+v", c, m)
			}
		}
	}
	checkInvariants(t, x, int64(len(blob)))
}

// decompressMember returns what a member holds, and what follows it.
func decompressMember(t *testing.T, x *Index, blob []byte, m Member) []byte {
	t.Helper()
	in := bytes.NewReader(blob[m.Offset : m.Offset+m.Size])
	if x.Compression == Zstd {
		zr, err := zstd.NewReader(in)
		if err != nil {
			t.Fatal(err)
		}
		defer zr.Close()
		plain, err := io.ReadAll(zr)
		if err != nil && !errors.Is(err, io.ErrUnexpectedEOF) {
			t.Fatal(err)
		}
		return plain
	}
	zr, err := gzip.NewReader(in)
	if err != nil {
		t.Fatal(err)
	}
	plain, err := io.ReadAll(zr)
	if err != nil && !errors.Is(err, io.ErrUnexpectedEOF) && !errors.Is(err, gzip.ErrHeader) {
		t.Fatal(err)
	}
	return plain
}

// checkInvariants checks what the comments of Index promise.
func checkInvariants(t *testing.T, x *Index, tocOffset int64) {
	t.Helper()
	var addr, covered, offset int64
	for _, e := range x.Entries {
		if e.Type != Reg && e.Size != 0 || e.Size == 0 && e.Addr != 0 || e.Size > 0 && e.Addr != addr {
			t.Fatalf("entry %+v is not at %d", e, addr)
		}
		addr += (e.Size + BlockSize - 1) / BlockSize * BlockSize
	}
	if addr != x.DataSize {
		t.Fatalf("%d bytes of data, DataSize is %d", addr, x.DataSize)
	}
	for i, c := range x.Chunks {
		if c.Size <= 0 || c.Addr < covered || c.Addr+c.Size > x.DataSize || c.Inner < 0 {
			t.Fatalf("chunk %d: %+v", i, c)
		}
		covered = c.Addr + c.Size
	}
	next := 0
	for i, m := range x.Members {
		if m.Offset < offset || m.Size <= 0 || m.Offset+m.Size > tocOffset || m.First != next || m.Count <= 0 {
			t.Fatalf("member %d: %+v", i, m)
		}
		offset, next = m.Offset+m.Size, next+m.Count
		for _, c := range x.Chunks[m.First:next] {
			if c.Member != i {
				t.Fatalf("chunk %+v is not of member %d", c, i)
			}
		}
	}
	if next != len(x.Chunks) {
		t.Fatalf("%d chunks in members, of %d", next, len(x.Chunks))
	}
}

func TestLoad(t *testing.T) {
	for _, c := range []struct {
		name string
		opts []estargz.Option
	}{
		{"plain", nil},
		{"chunks", []estargz.Option{estargz.WithChunkSize(4096)}},
		{"shared members", []estargz.Option{estargz.WithChunkSize(4096), estargz.WithMinChunkSize(60)}},
		{"one member", []estargz.Option{estargz.WithChunkSize(4096), estargz.WithMinChunkSize(1 << 20)}},
		{"prioritized", []estargz.Option{estargz.WithPrioritizedFiles([]string{"bin/small"})}},
	} {
		t.Run(c.name, func(t *testing.T) {
			blob, want := buildLayer(t, sampleFiles(), c.opts...)
			b := &memBlob{data: blob}
			raw, offset, x, err := Load(t.Context(), b, want, Hint{})
			if err != nil {
				t.Fatal(err)
			}
			if n := b.requests.Load(); n != 1 {
				t.Errorf("%d requests for a small layer", n)
			}
			checkContent(t, x, blob[:offset])
			checkSample(t, x)
			again, err := Parse(raw, want, offset)
			if err != nil || !reflect.DeepEqual(again, x) {
				t.Errorf("Parse of what Load returned: %v", err)
			}
			b = &memBlob{data: blob}
			raw2, offset2, hinted, err := Load(t.Context(), b, want, Hint{Offset: offset, Size: int64(len(raw))})
			if err != nil || offset2 != offset || !bytes.Equal(raw, raw2) || !reflect.DeepEqual(hinted, x) {
				t.Errorf("with the hint: %v", err)
			}
			if n := b.bytes.Load(); n != int64(len(raw)) {
				t.Errorf("%d bytes were read for a TOC of %d", n, len(raw))
			}
		})
	}
}

// checkSample compares x with sampleFiles.
func checkSample(t *testing.T, x *Index) {
	t.Helper()
	byPath := map[string]Entry{}
	for _, e := range x.Entries {
		e.Addr = 0
		byPath[e.Path] = e
	}
	const when = 1700000000
	want := map[string]Entry{
		"":          {Type: Dir, Mode: 0o755, Sec: when},
		"bin":       {Path: "bin", Type: Dir, Mode: 0o755, Sec: when},
		"bin/tool":  {Path: "bin/tool", Type: Reg, Mode: 0o4755, Sec: when, Size: 13000, Xattrs: map[string][]byte{"user.note": []byte("x\x00y")}},
		"bin/small": {Path: "bin/small", Type: Reg, Mode: 0o644, Sec: when, Size: 5, UID: 1000, GID: 4000000000},
		"bin/empty": {Path: "bin/empty", Type: Reg, Mode: 0o600, Sec: when},
		"sh":        {Path: "sh", Type: Symlink, Mode: 0o777, Sec: when, Link: "bin/tool"},
		"bin/alias": {Path: "bin/alias", Type: Hardlink, Mode: 0o4755, Sec: when, Link: "bin/tool"},
		"dev":       {Path: "dev", Type: Dir, Mode: 0o755, Sec: when},
		"dev/disk":  {Path: "dev/disk", Type: Block, Mode: 0o660, Sec: when, DevMajor: 259, DevMinor: 300},
		"dev/pipe":  {Path: "dev/pipe", Type: Fifo, Mode: 0o600, Sec: when},

		"etc/.wh.gone":     {Path: "etc/.wh.gone", Type: Reg, Sec: when},
		"etc/.wh..wh..opq": {Path: "etc/.wh..wh..opq", Type: Reg, Sec: when},
	}
	if !reflect.DeepEqual(byPath, want) {
		t.Errorf("got %+v\nwant %+v", byPath, want)
	}
}

func TestLoadLargeTOC(t *testing.T) {
	raw, want := packTOC(t, bigTOC(12000))
	if len(raw) < probeSize {
		t.Fatalf("the TOC of %d bytes fits into the probe", len(raw))
	}
	const content = 16 << 20
	blob := append(make([]byte, content), raw...)
	blob = append(blob, estargzFooter(fmt.Sprintf("%016xSTARGZ", content))...)
	b := &memBlob{data: blob}
	got, offset, _, err := Load(t.Context(), b, want, Hint{})
	if err != nil || offset != content || !bytes.Equal(got, raw) {
		t.Fatal(offset, err)
	}
	if b.requests.Load() != 2 || b.bytes.Load() != int64(len(raw)+footerSize) {
		t.Errorf("%d requests, %d bytes for a TOC of %d", b.requests.Load(), b.bytes.Load(), len(raw))
	}
}

func TestLoadWrongHint(t *testing.T) {
	blob, want := buildLayer(t, sampleFiles())
	_, offset, _, err := Load(t.Context(), &memBlob{data: blob}, want, Hint{})
	if err != nil {
		t.Fatal(err)
	}
	size := int64(len(blob))
	for _, c := range []struct {
		hint Hint
		kind error
	}{
		{Hint{0, 10}, nil}, {Hint{1, 600}, nil}, {Hint{offset, 20}, nil}, {Hint{offset + 1, 100}, nil}, {Hint{size - 1, 1}, nil},
		{Hint{offset, size - offset}, nil}, // with the footer: also a gzip stream
		{Hint{-1, 10}, ErrHostile}, {Hint{0, -1}, ErrHostile}, {Hint{5, 0}, ErrHostile}, {Hint{size, 1}, ErrHostile},
		{Hint{1, 1<<63 - 1}, ErrHostile}, {Hint{1<<63 - 1, 1<<63 - 1}, ErrHostile},
	} {
		_, got, x, err := Load(t.Context(), &memBlob{data: blob}, want, c.hint)
		if c.kind == nil && (err != nil || got != offset || x == nil) || c.kind != nil && !errors.Is(err, c.kind) {
			t.Errorf("%+v: offset %d, %v", c.hint, got, err)
		}
	}
}

func TestLoadRefuses(t *testing.T) {
	blob, want := buildLayer(t, sampleFiles())
	other := digest.FromString("other")
	for _, c := range []struct {
		name string
		blob []byte
		want digest.Digest
		hint Hint
		kind error
		word string
	}{
		{"no digest", blob, "", Hint{}, ErrNoDigest, "no_toc_digest"},
		{"no digest at all", blob, "sha256:zz", Hint{}, ErrNoDigest, "no_toc_digest"},
		{"sha512", blob, digest.SHA512.FromString("x"), Hint{}, ErrUnsupported, "toc_unsupported"},
		{"other digest", blob, other, Hint{}, ErrDigest, "toc_digest_mismatch"},
		{"other digest, hint", blob, other, Hint{100, 10}, ErrDigest, "toc_digest_mismatch"},
		{"empty blob", nil, want, Hint{}, ErrNotEStargz, "not_estargz"},
		{"no footer", blob[:len(blob)-1], want, Hint{}, ErrNotEStargz, "not_estargz"},
		{"damaged", append([]byte{0}, blob...), want, Hint{}, ErrCorrupt, "toc_corrupt"},
		{"external", append(bytes.Clone(blob), estargzFooter("STARGZEXTERNALTOC")...), want, Hint{}, ErrExternalTOC, "external_toc"},
	} {
		raw, offset, x, err := Load(t.Context(), &memBlob{data: c.blob}, c.want, c.hint)
		if raw != nil || offset != 0 || x != nil || !errors.Is(err, c.kind) || Reason(err) != c.word {
			t.Errorf("%s: %v, reason %q", c.name, err, Reason(err))
		}
	}
}

// Every single damaged bit is noticed.
func TestParseDamage(t *testing.T) {
	raw, want := packTOC(t, []byte(`{"version":1,"entries":[{"name":"a","type":"dir"}]}`))
	for i := range raw {
		bad := bytes.Clone(raw)
		bad[i] ^= 1 << (i % 8)
		x, err := Parse(bad, want, 0)
		if err == nil && (len(x.Entries) != 1 || x.Entries[0].Path != "a") {
			t.Fatalf("byte %d: accepted %+v", i, x)
		}
		if _, err := Parse(raw[:i], want, 0); err == nil && i < 60 {
			t.Fatalf("accepted the first %d bytes", i)
		}
	}
}

func TestReason(t *testing.T) {
	for err, want := range map[error]string{
		nil: "", context.Canceled: "canceled", fmt.Errorf("x: %w", context.DeadlineExceeded): "timeout", io.EOF: "other",
		&fetch.Error{Host: "h", Err: io.EOF}: "registry", failf(ErrLimit, "x"): "toc_too_large", failf(ErrHostile, "x"): "toc_invalid",
	} {
		if got := Reason(err); got != want {
			t.Errorf("%v: %q", err, got)
		}
	}
	long := &Error{Kind: ErrHostile, Entry: strings.Repeat("\n", 5000), What: "x"}
	if s := long.Error(); len(s) > 400 || strings.Contains(s, "\n") {
		t.Errorf("%q", s)
	}
}

// FuzzParse must neither panic nor break a promise of Index, whatever the JSON.
func FuzzParse(f *testing.F) {
	f.Add(bigTOC(3), int64(1<<20))
	for _, c := range hostileCases() {
		f.Add([]byte(`{"version":1,"entries":[`+c.entries+`]}`), int64(tocAt))
	}
	f.Fuzz(func(t *testing.T, js []byte, tocOffset int64) {
		x, err := parseJSON(bytes.NewReader(js), newBuilder(int64(len(js)), max(0, tocOffset)))
		if err != nil {
			if Reason(err) == "other" {
				t.Fatalf("no reason for %v", err)
			}
			return
		}
		checkInvariants(t, x, tocOffset)
	})
}

// FuzzRaw must not panic, whatever the bytes of the blob.
func FuzzRaw(f *testing.F) {
	raw, d := packTOC(f, bigTOC(2))
	f.Add(raw, string(d), int64(1<<20))
	js := bigTOC(2)
	f.Add(packZstd(f, js), string(digest.FromBytes(js)), int64(1<<20))
	blob, want, at := storageLayer(f)
	f.Add(blob[at.Offset:at.Offset+at.Size], string(want), at.Offset)
	f.Fuzz(func(t *testing.T, raw []byte, d string, tocOffset int64) {
		_, err := Parse(raw, digest.Digest(d), tocOffset)
		if err != nil && Reason(err) == "other" {
			t.Fatalf("no reason for %v", err)
		}
	})
}
