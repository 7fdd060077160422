package toc

import (
	"archive/tar"
	"bytes"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"reflect"
	"strings"
	"testing"

	"github.com/containerd/stargz-snapshotter/estargz"
	"github.com/containerd/stargz-snapshotter/estargz/zstdchunked"
	"github.com/klauspost/compress/zstd"
	"github.com/opencontainers/go-digest"

	"github.com/apparate/apparate/api/image"
)

// packZstd wraps a TOC's JSON as it is in a zstd:chunked blob.
func packZstd(t testing.TB, js []byte) []byte {
	t.Helper()
	zw, err := zstd.NewWriter(nil)
	if err != nil {
		t.Fatal(err)
	}
	return zw.EncodeAll(js, nil)
}

// zstdTail is a footer with the frame around it.
func zstdTail(magic string, n ...uint64) []byte {
	p := binary.LittleEndian.AppendUint32(nil, zstdSkippableMagic)
	p = binary.LittleEndian.AppendUint32(p, uint32(8*len(n)+len(magic)))
	for _, v := range n {
		p = binary.LittleEndian.AppendUint64(p, v)
	}
	return append(p, magic...)
}

// storageLayer is a layer that containers/storage v1.59.1 wrote, and its annotations.
// It has a file of several data and zero chunks, and files of one chunk.
func storageLayer(t testing.TB) (blob []byte, want digest.Digest, hint Hint) {
	t.Helper()
	blob, err := os.ReadFile("testdata/storage.zst")
	if err != nil {
		t.Fatal(err)
	}
	text, err := os.ReadFile("testdata/storage.json")
	if err != nil {
		t.Fatal(err)
	}
	var a map[string]string
	if err := json.Unmarshal(text, &a); err != nil {
		t.Fatal(err)
	}
	if _, err := fmt.Sscanf(a[image.AnnotationZstdPosition], "%d:%d:", &hint.Offset, &hint.Size); err != nil {
		t.Fatal(err)
	}
	return blob, digest.Digest(a[image.AnnotationZstdChecksum]), hint
}

// unzstd is the tar of a zstd:chunked blob.
func unzstd(t testing.TB, blob []byte) []byte {
	t.Helper()
	zr, err := zstd.NewReader(bytes.NewReader(blob))
	if err != nil {
		t.Fatal(err)
	}
	defer zr.Close()
	plain, err := io.ReadAll(zr)
	if err != nil {
		t.Fatal(err)
	}
	return plain
}

// sameAsTar compares the address space of x, read from blob, with the files of the tar.
func sameAsTar(t *testing.T, x *Index, blob, text []byte) {
	t.Helper()
	space := make([]byte, x.DataSize)
	for _, m := range x.Members {
		plain := decompressMember(t, x, blob, m)
		for _, c := range x.Chunks[m.First : m.First+m.Count] {
			copy(space[c.Addr:], plain[c.Inner:c.Inner+c.Size])
		}
	}
	entries := map[string]Entry{}
	for _, e := range x.Entries {
		entries[e.Path] = e
	}
	tr := tar.NewReader(bytes.NewReader(text))
	for n := 0; ; n++ {
		h, err := tr.Next()
		if errors.Is(err, io.EOF) {
			if len(x.Entries) > n {
				t.Errorf("%d entries, %d in the tar", len(x.Entries), n)
			}
			return
		}
		if err != nil {
			t.Fatal(err)
		}
		body, err := io.ReadAll(tr)
		if err != nil {
			t.Fatal(err)
		}
		e, ok := entries[strings.Trim(strings.TrimPrefix(h.Name, "./"), "/")]
		if !ok || e.Sec != h.ModTime.Unix() || int64(e.Mode) != h.Mode || int(e.UID) != h.Uid || e.Size != h.Size ||
			!bytes.Equal(space[e.Addr:e.Addr+e.Size], body) || string(e.Xattrs["user.note"]) != h.PAXRecords["SCHILY.xattr.user.note"] {
			t.Errorf("%s is %+v, in the tar %+v", h.Name, e, h)
		}
	}
}

func TestLoadStargzZstd(t *testing.T) {
	for name, opts := range map[string][]estargz.Option{
		"plain":          nil,
		"chunks":         {estargz.WithChunkSize(4096)},
		"shared members": {estargz.WithChunkSize(4096), estargz.WithMinChunkSize(60)},
		"one member":     {estargz.WithChunkSize(4096), estargz.WithMinChunkSize(1 << 20)},
	} {
		t.Run(name, func(t *testing.T) {
			about := map[string]string{}
			blob, want := buildLayer(t, sampleFiles(), append(opts, estargz.WithCompression(zstdCompression{
				&zstdchunked.Compressor{CompressionLevel: zstd.SpeedDefault, Metadata: about}, &zstdchunked.Decompressor{},
			}))...)
			raw, offset, x, err := Load(t.Context(), &memBlob{data: blob}, want, Hint{})
			if err != nil {
				t.Fatal(err)
			}
			if x.Compression != Zstd {
				t.Error("its members are gzip")
			}
			checkContent(t, x, blob[:offset])
			checkSample(t, x)
			// The annotations lead there as well, by either digest.
			position := fmt.Sprintf("%d:%d:", offset, len(raw))
			if got := about[image.AnnotationStargzZstdPosition]; !strings.HasPrefix(got, position) {
				t.Errorf("the TOC was found at %s, the annotation says %s", position, got)
			}
			b := &memBlob{data: blob}
			_, _, again, err := Load(t.Context(), b, digest.Digest(about[image.AnnotationStargzZstdChecksum]), Hint{Offset: offset, Size: int64(len(raw))})
			if err != nil || !reflect.DeepEqual(again, x) || b.requests.Load() != 1 {
				t.Errorf("with the annotations: %v, %d requests", err, b.requests.Load())
			}
		})
	}
}

// zstdCompression is what estargz.WithCompression takes.
type zstdCompression struct {
	*zstdchunked.Compressor
	*zstdchunked.Decompressor
}

func TestLoadStorageZstd(t *testing.T) {
	blob, want, hint := storageLayer(t)
	raw, offset, x, err := Load(t.Context(), &memBlob{data: blob}, want, hint)
	if err != nil {
		t.Fatal(err)
	}
	checkContent(t, x, blob[:offset])
	sameAsTar(t, x, blob, unzstd(t, blob))
	if again, err := Parse(raw, want, offset); err != nil || !reflect.DeepEqual(again, x) {
		t.Errorf("Parse of what Load returned: %v", err)
	}
	raw2, offset2, found, err := Load(t.Context(), &memBlob{data: blob}, want, Hint{})
	if err != nil || offset2 != offset || !bytes.Equal(raw, raw2) || !reflect.DeepEqual(found, x) {
		t.Errorf("by the footer: %v", err)
	}
	// Zeros are not fetched: the file "holes" has 378000 bytes and 8000 of them.
	content := int64(0)
	for _, c := range x.Chunks {
		content += c.Size
	}
	if holes := int64(370000); content != 13000+5+308000+378000-holes+50000+7 {
		t.Errorf("chunks have %d bytes", content)
	}
	for name, d := range map[string]digest.Digest{"another": digest.FromString("x"), "none": ""} {
		if _, _, _, err := Load(t.Context(), &memBlob{data: blob}, d, hint); !errors.Is(err, ErrDigest) && !errors.Is(err, ErrNoDigest) {
			t.Errorf("%s digest: %v", name, err)
		}
	}
	blob[hint.Offset+100] ^= 1
	if _, _, _, err := Load(t.Context(), &memBlob{data: blob}, want, hint); !errors.Is(err, ErrCorrupt) && !errors.Is(err, ErrDigest) {
		t.Errorf("a changed byte: %v", err)
	}
}

// The tail that is read for the footer may begin behind the TOC's end.
func TestLongTarSplit(t *testing.T) {
	js := bigTOC(50)
	raw := packZstd(t, js)
	const content = 1 << 20
	blob := make([]byte, content)
	blob = append(blob, zstdFrame(raw)...)
	blob = append(blob, zstdFrame(make([]byte, 3*probeSize))...)
	blob = append(blob, zstdTail("GNUlInUx", content+8, uint64(len(raw)), uint64(len(js)), 1, 1, 2, 3)...)
	got, offset, x, err := Load(t.Context(), &memBlob{data: blob}, digest.FromBytes(js), Hint{})
	if err != nil || offset != content+8 || !bytes.Equal(got, raw) {
		t.Fatalf("%d bytes at %d, %v", len(got), offset, err)
	}
	if last := x.Members[len(x.Members)-1]; last.Offset+last.Size != content {
		t.Errorf("the content ends at %d", last.Offset+last.Size)
	}
}

// zstdFrame is a skippable frame.
func zstdFrame(payload []byte) []byte {
	p := binary.LittleEndian.AppendUint32(nil, zstdSkippableMagic)
	return append(binary.LittleEndian.AppendUint32(p, uint32(len(payload))), payload...)
}

func TestParseZstdFooter(t *testing.T) {
	const size = 5000
	for _, c := range []struct {
		name        string
		tail        []byte
		offset, end int64
		kind        error
	}{
		{"stargz", zstdTail("GnUlInUx", 1000, 200, 900, 1), 1000, 1200, nil},
		{"storage", zstdTail("GNUlInUx", 1000, 200, 900, 1, 1300, 9, 99), 1000, 1200, nil},
		{"storage before tar-split", zstdTail("GNUlInUx", 1000, 200, 900, 1), 1000, 1200, nil},
		{"up to the footer", zstdTail("GnUlInUx", 8, size-48-8, 900, 1), 8, size - 48, nil},
		{"into the footer", zstdTail("GnUlInUx", 8, size-48-8+1, 900, 1), 0, 0, ErrHostile},
		{"no room before", zstdTail("GnUlInUx", 7, 200, 900, 1), 0, 0, ErrHostile},
		{"overflow", zstdTail("GnUlInUx", 1000, 1<<64-500, 900, 1), 0, 0, ErrHostile},
		{"far", zstdTail("GnUlInUx", 1<<63, 200, 900, 1), 0, 0, ErrHostile},
		{"empty", zstdTail("GnUlInUx", 1000, 0, 0, 1), 0, 0, ErrHostile},
		{"type", zstdTail("GnUlInUx", 1000, 200, 900, 2), 0, 0, ErrUnsupported},
		{"magic", zstdTail("GnUlInUy", 1000, 200, 900, 1), 0, 0, ErrNotEStargz},
		{"no frame", zstdTail("GnUlInUx", 1000, 200, 900, 1)[8:], 0, 0, ErrNotEStargz},
		{"other length", zstdTail("GnUlInUx", 1000, 200, 900, 1, 1), 0, 0, ErrNotEStargz},
	} {
		offset, end, err := parseFooter(c.tail, size)
		if offset != c.offset || end != c.end || !errors.Is(err, c.kind) || (err == nil) != (c.kind == nil) {
			t.Errorf("%s: %d, %d, %v", c.name, offset, end, err)
		}
	}
	if _, _, err := parseFooter(zstdTail("GnUlInUx", 8, maxCompressedTOC+1, 9, 1), 1<<40); !errors.Is(err, ErrLimit) {
		t.Errorf("too large: %v", err)
	}
}

// A bomb does not get far: JSON is read as far as the limit, in a window that is bounded.
func TestZstdBounds(t *testing.T) {
	wide := []byte{0x28, 0xb5, 0x2f, 0xfd, 0x00, 0x90 /* a window of 256 MiB */, 1, 0, 0}
	if _, err := Parse(wide, digest.FromBytes(wide), 1000); !errors.Is(err, ErrCorrupt) {
		t.Errorf("a wide window: %v", err)
	}
	raw := packZstd(t, []byte(`{"version":1,"entries":[]}`))
	for _, offset := range []int64{-1, 0, 7} {
		if _, err := Parse(raw, digest.FromBytes(raw), offset); !errors.Is(err, ErrHostile) {
			t.Errorf("the TOC at %d: %v", offset, err)
		}
	}
	if _, err := Parse(raw, digest.FromBytes(raw), 8); err != nil {
		t.Errorf("an empty layer: %v", err)
	}
	if _, err := Parse(raw[:len(raw)-3], digest.FromBytes(raw[:len(raw)-3]), 8); !errors.Is(err, ErrCorrupt) {
		t.Errorf("cut off: %v", err)
	}
}
