package encode

import (
	"archive/tar"
	"bytes"
	"context"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/containerd/stargz-snapshotter/estargz"
)

// goTree packs up to 200 MiB of the Go toolchain: binaries, sources, many small
// files, about what an image layer holds.
func goTree(b *testing.B) []byte {
	b.Helper()
	goroot, err := exec.Command("go", "env", "GOROOT").Output()
	if err != nil {
		b.Fatal(err)
	}
	root := strings.TrimSpace(string(goroot))
	var out bytes.Buffer
	w := tar.NewWriter(&out)
	err = filepath.WalkDir(root, func(p string, d fs.DirEntry, err error) error {
		if err != nil || out.Len() > 200<<20 || !d.Type().IsRegular() && !d.IsDir() {
			return err
		}
		info, err := d.Info()
		if err != nil {
			return err
		}
		h, err := tar.FileInfoHeader(info, "")
		if err != nil {
			return err
		}
		if h.Name, err = filepath.Rel(root, p); err != nil {
			return err
		}
		if d.IsDir() {
			h.Name += "/"
			return w.WriteHeader(h)
		}
		body, err := os.ReadFile(p)
		if err != nil {
			return err
		}
		if err := w.WriteHeader(h); err != nil {
			return err
		}
		_, err = w.Write(body)
		return err
	})
	if err != nil {
		b.Fatalf("read %s: %v", root, err)
	}
	if err := w.Close(); err != nil {
		b.Fatal(err)
	}
	return out.Bytes()
}

type count int64

func (c *count) Write(p []byte) (int, error) { *c += count(len(p)); return len(p), nil }

// BenchmarkEncode compares with stargz's own writer at its defaults. "ratio" is
// the blob's size to the tar's.
func BenchmarkEncode(b *testing.B) {
	src := goTree(b)
	for _, level := range []int{1, 3, 5, 6, 7, 9} {
		b.Run(fmt.Sprintf("apparate/level=%d", level), func(b *testing.B) {
			b.SetBytes(int64(len(src)))
			b.ReportAllocs()
			for range b.N {
				l, err := Encode(context.Background(), io.Discard, bytes.NewReader(src), Options{Level: level})
				if err != nil {
					b.Fatal(err)
				}
				b.ReportMetric(float64(l.Size)/float64(len(src)), "ratio")
				b.ReportMetric(float64(l.TOCSize)/1024, "toc-KiB")
			}
		})
	}
	for name, opts := range map[string][]estargz.Option{
		"default": nil, "256KiB": {estargz.WithChunkSize(256 << 10)},
	} {
		b.Run("estargz/"+name, func(b *testing.B) {
			b.SetBytes(int64(len(src)))
			b.ReportAllocs()
			for range b.N {
				blob, err := estargz.Build(io.NewSectionReader(bytes.NewReader(src), 0, int64(len(src))), opts...)
				if err != nil {
					b.Fatal(err)
				}
				var n count
				if _, err := io.Copy(&n, blob); err != nil {
					b.Fatal(err)
				}
				if err := blob.Close(); err != nil {
					b.Fatal(err)
				}
				b.ReportMetric(float64(n)/float64(len(src)), "ratio")
			}
		})
	}
}
