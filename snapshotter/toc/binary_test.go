package toc

import (
	"bytes"
	"errors"
	"strings"
	"testing"

	"github.com/opencontainers/go-digest"

	"github.com/apparate/apparate/api/layerindex"
)

// indexRow is an entry of a layer index with its chunks.
type indexRow struct {
	layerindex.Entry
	chunks []layerindex.Chunk
}

// packIndex makes a layer index, and its digest.
func packIndex(t testing.TB, contentEnd int64, rows ...indexRow) ([]byte, digest.Digest) {
	t.Helper()
	var blocks []byte
	w, err := layerindex.NewWriter(4096, func(b []byte) error { blocks = append(blocks, b...); return nil })
	if err != nil {
		t.Fatal(err)
	}
	for i := range rows {
		if err := w.Add(&rows[i].Entry, rows[i].chunks); err != nil {
			t.Fatal(err)
		}
	}
	header, err := w.Close(contentEnd)
	if err != nil {
		t.Fatal(err)
	}
	payload := append(header, blocks...)
	return payload, digest.FromBytes(payload)
}

func indexFile(path string, size int64, chunks ...layerindex.Chunk) indexRow {
	return indexRow{layerindex.Entry{Path: path, Type: layerindex.Reg, Mode: 0o644, Size: size}, chunks}
}

// What an index may say and no layer may have is refused as in a TOC.
func TestParseIndexRefuses(t *testing.T) {
	dir := func(e layerindex.Entry) indexRow { e.Type = layerindex.Dir; return indexRow{Entry: e} }
	long := map[string][]byte{}
	for _, n := range strings.Split("abcdefgh", "") {
		long["user."+n] = make([]byte, 1<<16-1)
	}
	for name, c := range map[string]struct {
		row  indexRow
		kind error
	}{
		"good":         {indexFile("a", 1, layerindex.Chunk{Offset: 5, Size: 1}), nil},
		"TOC":          {indexFile("stargz.index.json", 0), ErrHostile},
		"landmark":     {indexFile(".prefetch.landmark", 1, layerindex.Chunk{Offset: 5, Size: 1}), ErrHostile},
		"no owner":     {dir(layerindex.Entry{Path: "a", UID: 1<<32 - 1}), ErrLimit},
		"device":       {indexRow{Entry: layerindex.Entry{Path: "a", Type: layerindex.Char, DevMajor: 1 << 12}}, ErrLimit},
		"behind":       {indexFile("a", 1, layerindex.Chunk{Offset: 100, Size: 1}), ErrHostile},
		"far inside":   {indexFile("a", 1, layerindex.Chunk{Offset: 5, Inner: maxMember, Size: 1}), ErrLimit},
		"overlap":      {indexFile("a", 8192, layerindex.Chunk{Offset: 5, Inner: 100, Size: 4096}, layerindex.Chunk{Offset: 5, Inner: 100, Size: 4096}), ErrHostile},
		"large chunk":  {indexFile("a", maxChunk+1, layerindex.Chunk{Offset: 5, Size: maxChunk + 1}), ErrLimit},
		"large file":   {indexFile("a", 1<<50, layerindex.Chunk{Offset: 5, Size: 1 << 50}), ErrLimit},
		"large xattrs": {dir(layerindex.Entry{Path: "a", Xattrs: long}), ErrLimit},
	} {
		payload, d := packIndex(t, 100, c.row)
		x, err := ParseIndex(payload, d)
		if (err == nil) != (c.kind == nil) || !errors.Is(err, c.kind) || (x == nil) != (err != nil) {
			t.Errorf("%s: %v, want %v", name, err, c.kind)
		}
	}
	payload, d := packIndex(t, 100)
	if _, err := ParseIndex(payload, digest.FromString("x")); !errors.Is(err, ErrDigest) {
		t.Errorf("another digest: %v", err)
	}
	if _, err := ParseIndex(payload, ""); !errors.Is(err, ErrNoDigest) {
		t.Errorf("no digest: %v", err)
	}
	b := &memBlob{data: append([]byte("before"), layerindex.AppendMembers(nil, payload)...)}
	got, x, err := LoadIndex(t.Context(), b, d, Hint{Offset: 6, Size: int64(len(b.data)) - 6})
	if err != nil || !bytes.Equal(got, payload) || len(x.Entries) != 0 || b.requests.Load() != 1 {
		t.Errorf("load: %v, %d requests", err, b.requests.Load())
	}
}

// An index says how its members are compressed, wherever it lies.
func TestIndexOfZstd(t *testing.T) {
	payload, _ := packIndex(t, 100, indexFile("a", 1, layerindex.Chunk{Offset: 5, Size: 1}))
	copy(payload, "APPRIDZ1")
	data := append(layerindex.FrameHeader(int64(len(payload))), payload...)
	_, x, err := LoadIndex(t.Context(), &memBlob{data: append(data, "tail"...)}, digest.FromBytes(payload), Hint{Size: int64(len(data))})
	if err != nil || x.Compression != Zstd {
		t.Errorf("%+v, %v", x, err)
	}
}

// FuzzParseIndex: whatever is accepted has the properties that others rely on.
func FuzzParseIndex(f *testing.F) {
	payload, _ := packIndex(f, tocAt, indexFile("a/b", 5000, layerindex.Chunk{Offset: 5, Size: 4096}, layerindex.Chunk{Offset: 5, Inner: 4096, Size: 904}),
		indexFile("a/c", 3, layerindex.Chunk{Offset: 5, Inner: 6000, Size: 3}), indexRow{Entry: layerindex.Entry{Path: "d", Type: layerindex.Hardlink, Link: "a/b"}},
		indexRow{Entry: layerindex.Entry{Path: "e", Type: layerindex.Symlink, Link: "/x", Xattrs: map[string][]byte{"security.a": {1}}, Nsec: 5}})
	f.Add(payload)
	payload, _ = packIndex(f, 0)
	f.Add(payload)
	f.Fuzz(func(t *testing.T, payload []byte) {
		r, err := layerindex.NewReader(payload)
		if err != nil {
			return
		}
		if x, err := ParseIndex(payload, digest.FromBytes(payload)); err == nil {
			checkInvariants(t, x, r.Header.ContentEnd)
		} else if Reason(err) == "other" {
			t.Errorf("an error without a kind: %v", err)
		}
	})
}
