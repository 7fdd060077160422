package encode

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"io"
	"testing"
)

// FuzzEncode feeds arbitrary bytes. Whatever is taken has to be read back by
// stargz and to agree with archive/tar.
func FuzzEncode(f *testing.F) {
	weird := everything()
	for i := range weird {
		weird[i].body = weird[i].body[:min(len(weird[i].body), 700)]
	}
	f.Add(makeTar(f, weird[:35]...), uint16(200), uint16(300))
	f.Add(makeTar(f, reg("a", noise(1, 3000)), link("b", "a"), symlink("c", "b"), dir("d"), reg(PrefetchLandmark, []byte{0xf}), reg("e", []byte("e"))), uint16(1024), uint16(1024))
	f.Add(makeTar(f, weird[:35]...), uint16(201), uint16(300))
	f.Add(retype(makeTar(f, ent{tar.Header{Typeflag: tar.TypeReg, Name: "s", Format: tar.FormatGNU}, nil}), tar.TypeGNUSparse), uint16(1), uint16(0))
	f.Add(makeTar(f, ent{tar.Header{Typeflag: tar.TypeReg, Name: "x", Format: tar.FormatPAX, PAXRecords: map[string]string{"SCHILY.xattr.user.a": "b"}}, nil}), uint16(512), uint16(512))
	f.Fuzz(func(t *testing.T, src []byte, chunk, group uint16) {
		if len(src) > 48<<10 {
			return
		}
		// Without right checksums nearly every change ends at the first header.
		src = bytes.Clone(src)
		for b := src; len(b) >= blockSize; b = b[blockSize:] {
			if string(b[257:262]) == "ustar" {
				retype(b, b[156])
			}
		}
		var out bytes.Buffer
		o := Options{ChunkSize: int64(chunk) + 64, GroupSize: int64(group) - 1, Workers: 2, Level: 1}
		if chunk%2 == 1 {
			o.Format = ZstdChunked
		}
		l, err := Encode(context.Background(), &out, bytes.NewReader(src), o)
		if err != nil {
			var u *UnsupportedError
			var c *CorruptError
			if !errors.As(err, &u) && !errors.As(err, &c) {
				t.Fatalf("an error without a kind: %v", err)
			}
			return
		}
		checkLayer(t, out.Bytes(), l)
		checkEstargz(t, out.Bytes(), l, src)
	})
}

func FuzzParseFooter(f *testing.F) {
	f.Add(Footer(0))
	f.Add(Footer(1 << 40))
	f.Add(make([]byte, FooterSize))
	f.Fuzz(func(t *testing.T, b []byte) {
		off, err := ParseFooter(b)
		if err == nil && (off < 0 || !bytes.Equal(Footer(off), b)) {
			t.Errorf("%x was taken for a footer with offset %d", b, off)
		}
	})
}

func FuzzParseZstdFooter(f *testing.F) {
	f.Add(ZstdFooter(0, 0, 0))
	f.Add(ZstdFooter(1<<40, 1<<20, 1<<23))
	f.Add(make([]byte, ZstdFooterSize))
	f.Fuzz(func(t *testing.T, b []byte) {
		off, size, length, err := ParseZstdFooter(b)
		if err == nil && (off < 0 || off+size < 0 || !bytes.Equal(ZstdFooter(off, size, length), b)) {
			t.Errorf("%x was taken for a footer of %d+%d", b, off, size)
		}
	})
}

// FuzzOpen: no bytes make the decompressors panic or hang.
func FuzzOpen(f *testing.F) {
	f.Add([]byte{0x1f, 0x8b, 8, 0})
	f.Add([]byte{0x28, 0xb5, 0x2f, 0xfd, 0, 0})
	f.Add(Footer(5))
	f.Add(append(Footer(5)[:40], 0xf4, 0, 0xff, 0xff))
	f.Fuzz(func(t *testing.T, b []byte) {
		r, _, err := Open(bytes.NewReader(b))
		if err != nil {
			return
		}
		_, _ = io.Copy(io.Discard, io.LimitReader(r, 1<<20)) // broken input may fail
		_ = r.Close()                                        // and says so again
	})
}
