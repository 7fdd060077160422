package check

import (
	"bytes"
	"fmt"
	"io"
	"math/rand/v2"
	"testing"

	"github.com/klauspost/compress/zstd"

	"github.com/apparate/apparate/api/image"
	"github.com/apparate/apparate/converter/encode"
)

func TestZstdEqual(t *testing.T) {
	r := checkForgedAs(t, encode.ZstdChunked, nil, nil)
	if !r.Equal() || r.Entries == 0 {
		t.Errorf("%+v", r)
	}
}

func TestZstdDiffers(t *testing.T) {
	footer := func(toc, size, json int64) func(*forged) {
		return func(f *forged) {
			copy(f.blob[len(f.blob)-encode.ZstdFooterSize:], encode.ZstdFooter(f.l.TOCOffset+toc, f.l.TOCSize+size, f.l.TOCJSONSize+json))
		}
	}
	for name, c := range map[string]struct {
		change func(*forged)
		field  string
	}{
		"no footer":       {func(f *forged) { f.blob[len(f.blob)-1]++ }, "layer: footer"},
		"beyond":          {footer(0, 1<<40, 0), "layer: footer"},
		"TOC size":        {footer(0, -1, 0), "layer: end of the TOC"},
		"JSON size":       {footer(0, 0, 1), "layer: footer"},
		"gzip inside":     {func(f *forged) { copy(f.blob, gz(f.t, []byte("x"))) }, "layer: compression"},
		"position":        {func(f *forged) { f.ann[image.AnnotationStargzZstdPosition] = "1:2:3:1" }, "annotation " + image.AnnotationStargzZstdPosition},
		"checksum":        {func(f *forged) { delete(f.ann, image.AnnotationStargzZstdChecksum) }, "annotation " + image.AnnotationStargzZstdChecksum},
		"other dialect":   {func(f *forged) { f.ann[image.AnnotationZstdChecksum] = "sha256:0" }, "annotation " + image.AnnotationZstdChecksum},
		"TOC digest":      {func(f *forged) { f.ann[image.AnnotationTOCDigest] = "sha256:0" }, "annotation " + image.AnnotationTOCDigest},
		"index of gzip":   {func(f *forged) { copy(f.blob[f.l.IndexOffset+8:], "APPRIDX1") }, "index: zstd"},
		"index offset":    {func(f *forged) { f.ann[image.AnnotationIndexOffset] = "1" }, "annotation " + image.AnnotationIndexOffset},
		"other tar":       {func(f *forged) { f.conf["rootfs"].(map[string]any)["diff_ids"] = []string{"sha256:0"} }, "config: diff_id"},
		"format of other": {func(f *forged) { f.mark[image.AnnotationFormat] = "zstd:chunked/0" }, "manifest: annotation " + image.AnnotationFormat},
	} {
		t.Run(name, func(t *testing.T) {
			wantDifference(t, checkForgedAs(t, encode.ZstdChunked, nil, c.change), "", c.field)
		})
	}
}

// oneFrame ends with the frame, whatever its header and blocks look like.
func TestOneFrame(t *testing.T) {
	noise := make([]byte, 300<<10)
	r := rand.NewChaCha8([32]byte{1})
	_, _ = r.Read(noise) // never fails
	for i, plain := range [][]byte{{}, []byte("a"), bytes.Repeat([]byte("ab"), 200<<10), make([]byte, 1<<20), noise, noise[:70<<10]} {
		for j, o := range [][]zstd.EOption{nil, {zstd.WithEncoderCRC(false)}, {zstd.WithSingleSegment(true)}, {zstd.WithWindowSize(1 << 20)}, {zstd.WithZeroFrames(true)}} {
			zw, err := zstd.NewWriter(nil, append(o, zstd.WithZeroFrames(true))...)
			if err != nil {
				t.Fatal(err)
			}
			frame := zw.EncodeAll(plain, nil)
			var streamed bytes.Buffer
			zw.Reset(&streamed)
			if _, err := io.Copy(zw, bytes.NewReader(plain)); err != nil {
				t.Fatal(err)
			}
			if err := zw.Close(); err != nil {
				t.Fatal(err)
			}
			for k, f := range [][]byte{frame, streamed.Bytes()} {
				name := fmt.Sprintf("content %d, options %d, %d", i, j, k)
				got, err := io.ReadAll(&oneFrame{r: bytes.NewReader(append(bytes.Clone(f), frame...))})
				if err != nil || !bytes.Equal(got, f) {
					t.Errorf("%s: %d bytes of %d, %v", name, len(got), len(f), err)
				}
				zr, err := newMember(true, bytes.NewReader(append(bytes.Clone(f), "behind"...)))
				if err != nil {
					t.Fatal(err)
				}
				if back, err := io.ReadAll(zr); err != nil || !bytes.Equal(back, plain) {
					t.Errorf("%s: unpacks to %d bytes of %d, %v", name, len(back), len(plain), err)
				}
				_ = zr.Close() // only frees memory
			}
		}
	}
}

// FuzzOneFrame: what is read of any bytes is their beginning, and it ends.
func FuzzOneFrame(f *testing.F) {
	zw, err := zstd.NewWriter(nil)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(zw.EncodeAll([]byte("hello, hello, hello"), nil))
	f.Add([]byte{0x28, 0xb5, 0x2f, 0xfd, 0x20, 1, 1, 0, 0})
	f.Add([]byte{0x28, 0xb5, 0x2f, 0xfd})
	f.Fuzz(func(t *testing.T, b []byte) {
		got, _ := io.ReadAll(&oneFrame{r: bytes.NewReader(b)}) // broken frames may fail
		if !bytes.HasPrefix(b, got) {
			t.Errorf("%x of %x", got, b)
		}
	})
}
