package encode

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"io"
	"testing"

	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zstd"
)

func TestOpen(t *testing.T) {
	src := makeTar(t, reg("a", noise(1, 100000)))
	var gz, zs bytes.Buffer
	zw := gzip.NewWriter(&gz)
	ew, err := zstd.NewWriter(&zs)
	if err != nil {
		t.Fatal(err)
	}
	for _, w := range []io.WriteCloser{zw, ew} {
		if _, err := w.Write(src); err != nil {
			t.Fatal(err)
		}
		if err := w.Close(); err != nil {
			t.Fatal(err)
		}
	}
	skippable := append([]byte{0x50, 0x2a, 0x4d, 0x18, 2, 0, 0, 0, 'x', 'x'}, zs.Bytes()...)
	for _, c := range []struct {
		kind Kind
		in   []byte
		want []byte
	}{{Plain, src, src}, {Gzip, gz.Bytes(), src}, {Zstd, zs.Bytes(), src}, {Zstd, skippable, src}, {Plain, nil, nil}, {Plain, []byte{1}, []byte{1}}} {
		r, kind, err := Open(bytes.NewReader(c.in))
		if err != nil || kind != c.kind {
			t.Fatalf("Open: %v, %v; want %v", kind, err, c.kind)
		}
		got, err := io.ReadAll(r)
		if err != nil || sha256.Sum256(got) != sha256.Sum256(c.want) {
			t.Errorf("%v: %d bytes, %v", kind, len(got), err)
		}
		if err := r.Close(); err != nil {
			t.Error(err)
		}
	}
	for _, b := range [][]byte{{0x1f, 0x8b, 9}, gz.Bytes()[:100], zs.Bytes()[:100]} {
		r, _, err := Open(bytes.NewReader(b))
		if err == nil {
			_, err = Encode(context.Background(), io.Discard, r, Options{})
		}
		var c *CorruptError
		if !errors.As(err, &c) {
			t.Errorf("%d bytes: %v, want a CorruptError", len(b), err)
		}
	}
}
