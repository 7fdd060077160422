package toc

import (
	"archive/tar"
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"sync/atomic"
	"testing"
	"time"

	"github.com/containerd/stargz-snapshotter/estargz"
	"github.com/klauspost/compress/gzip"
	"github.com/opencontainers/go-digest"
)

// memBlob is a blob in memory that counts its requests.
type memBlob struct {
	data     []byte
	requests atomic.Int32
	bytes    atomic.Int64
}

func (b *memBlob) Open(_ context.Context, off, n int64) (io.ReadCloser, error) {
	if off < 0 || n < 0 || off+n > int64(len(b.data)) {
		return nil, fmt.Errorf("range %d+%d of %d bytes", off, n, len(b.data))
	}
	b.requests.Add(1)
	b.bytes.Add(n)
	return io.NopCloser(bytes.NewReader(b.data[off : off+n])), nil
}

func (b *memBlob) Size() int64  { return int64(len(b.data)) }
func (b *memBlob) Close() error { return nil }

// file is a tar entry of a test layer.
type file struct {
	tar.Header
	data []byte
}

// buildLayer makes an eStargz blob with the reference writer.
func buildLayer(t testing.TB, files []file, opts ...estargz.Option) (blob []byte, toc digest.Digest) {
	t.Helper()
	var buf bytes.Buffer
	tw := tar.NewWriter(&buf)
	for _, f := range files {
		f.Size = int64(len(f.data))
		if err := tw.WriteHeader(&f.Header); err != nil {
			t.Fatal(err)
		}
		if _, err := tw.Write(f.data); err != nil {
			t.Fatal(err)
		}
	}
	if err := tw.Close(); err != nil {
		t.Fatal(err)
	}
	out, err := estargz.Build(io.NewSectionReader(bytes.NewReader(buf.Bytes()), 0, int64(buf.Len())), opts...)
	if err != nil {
		t.Fatal(err)
	}
	blob, err = io.ReadAll(out)
	if err != nil {
		t.Fatal(err)
	}
	if err := out.Close(); err != nil {
		t.Fatal(err)
	}
	return blob, out.TOCDigest()
}

// sampleFiles is a layer with one of everything.
func sampleFiles() []file {
	when := time.Unix(1700000000, 0)
	pattern := bytes.Repeat([]byte("0123456789abcdef"), 1000)
	h := func(typ byte, name, link string, mode int64) file {
		return file{Header: tar.Header{Typeflag: typ, Name: name, Linkname: link, Mode: mode, ModTime: when}}
	}
	big := h(tar.TypeReg, "bin/tool", "", 0o4755)
	big.data = pattern[:13000]
	big.PAXRecords = map[string]string{"SCHILY.xattr.user.note": "x\x00y"}
	big.Format = tar.FormatPAX
	small := h(tar.TypeReg, "bin/small", "", 0o644)
	small.data = []byte("small")
	small.Uid, small.Gid = 1000, 4000000000
	dev := h(tar.TypeBlock, "dev/disk", "", 0o660)
	dev.Devmajor, dev.Devminor = 259, 300
	return []file{
		h(tar.TypeDir, "./", "", 0o755), h(tar.TypeDir, "bin/", "", 0o755), big, small,
		h(tar.TypeReg, "bin/empty", "", 0o600), h(tar.TypeSymlink, "sh", "bin/tool", 0o777),
		h(tar.TypeLink, "bin/alias", "./bin/tool", 0o4755), h(tar.TypeDir, "dev", "", 0o755), dev,
		h(tar.TypeFifo, "dev/pipe", "", 0o600), h(tar.TypeReg, "etc/.wh.gone", "", 0), h(tar.TypeReg, "etc/.wh..wh..opq", "", 0),
	}
}

// packTOC wraps a TOC's JSON as it is in a blob and returns its digest.
func packTOC(t testing.TB, js []byte) (raw []byte, d digest.Digest) {
	t.Helper()
	var buf bytes.Buffer
	zw := gzip.NewWriter(&buf)
	tw := tar.NewWriter(zw)
	if err := tw.WriteHeader(&tar.Header{Typeflag: tar.TypeReg, Name: tocName, Size: int64(len(js))}); err != nil {
		t.Fatal(err)
	}
	if _, err := tw.Write(js); err != nil {
		t.Fatal(err)
	}
	if err := tw.Close(); err != nil {
		t.Fatal(err)
	}
	if err := zw.Close(); err != nil {
		t.Fatal(err)
	}
	return buf.Bytes(), digest.FromBytes(js)
}

// bigTOC makes the JSON of a layer of n files as the reference writer
// would write it, with 1.35 chunks and directories for each file.
func bigTOC(n int) []byte {
	toc := estargz.JTOC{Version: 1}
	offset := int64(1000)
	for i := range n {
		dir := fmt.Sprintf("usr/lib/python3.13/site-packages/package%03d/", i/40)
		if i%40 == 0 {
			toc.Entries = append(toc.Entries, &estargz.TOCEntry{Name: dir, Type: "dir", Mode: 0o755, ModTime3339: "2025-11-04T02:13:07Z"})
		}
		sum := sha256.Sum256([]byte{byte(i), byte(i >> 8), byte(i >> 16)})
		e := &estargz.TOCEntry{
			Name: dir + fmt.Sprintf("module_%05d.cpython-313-x86_64-linux-gnu.so", i), Type: "reg", Mode: 0o644,
			ModTime3339: "2025-11-04T02:13:07Z", Size: 1000, Offset: offset, Digest: "sha256:" + hex.EncodeToString(sum[:]), ChunkDigest: "sha256:" + hex.EncodeToString(sum[:]),
		}
		offset += 500
		toc.Entries = append(toc.Entries, e)
		if i%3 == 0 {
			e.Size, e.ChunkSize = 5000, 4096
			toc.Entries = append(toc.Entries, &estargz.TOCEntry{Name: e.Name, Type: "chunk", Offset: offset, ChunkOffset: 4096, ChunkDigest: e.ChunkDigest})
			offset += 500
		}
	}
	js, err := json.MarshalIndent(toc, "", "\t")
	if err != nil {
		panic(err)
	}
	return js
}

// realTOC is the JSON of a real layer when TOC_JSON names one.
func realTOC(b *testing.B) []byte {
	name := os.Getenv("TOC_JSON")
	if name == "" {
		return bigTOC(37000)
	}
	js, err := os.ReadFile(name)
	if err != nil {
		b.Fatal(err)
	}
	return js
}

// b64 is base64 for JSON in tests.
func b64(s string) string { return base64.StdEncoding.EncodeToString([]byte(s)) }
