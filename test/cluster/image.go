package cluster

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"

	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/remote"

	"github.com/apparate/apparate/test/debian"
	"github.com/apparate/apparate/test/images"
	"github.com/apparate/apparate/test/tools"
)

// Push pushes an image as repository:tag to the cluster's registry. Nodes find it
// there by any host name: library/app:1 is also docker.io/library/app:1, or app:1.
func (c *Cluster) Push(ctx context.Context, image string, img v1.Image) error {
	ref, err := name.ParseReference(RegistryAddress+"/"+image, name.Insecure)
	if err != nil {
		return err
	}
	t := c.Transport()
	defer t.CloseIdleConnections()
	return remote.Write(ref, img, remote.WithContext(ctx), remote.WithTransport(t))
}

// pushPause pushes the image that holds pods together.
func (c *Cluster) pushPause(ctx context.Context) error {
	img, err := Program(filepath.Join(c.bin(), "pause"))
	if err != nil {
		return err
	}
	_, image, _ := strings.Cut(pauseImage, "/")
	return c.Push(ctx, image, img)
}

// Program returns an image with a static program and nothing else, which it runs with
// the arguments args.
func Program(path string, args ...string) (v1.Image, error) {
	b, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	base := filepath.Base(path)
	return pack(append([]string{"/" + base}, args...), func(w *tar.Writer) error { return addFile(w, base, 0o755, b) })
}

// Busybox returns an image with a shell, wget and the like, out of Debian's
// busybox-static, that runs the command cmd.
func Busybox(ctx context.Context, progress io.Writer, cmd ...string) (v1.Image, error) {
	cache, err := tools.CacheDir()
	if err != nil {
		return nil, err
	}
	pkgs, err := debian.Open(filepath.Join(cache, "debian"), progress).Fetch(ctx, "busybox-static")
	if err != nil {
		return nil, err
	}
	var program []byte
	if err := pkgs[0].Files(ctx, func(h *tar.Header, r io.Reader) (err error) {
		if filepath.Base(h.Name) == "busybox" && h.Typeflag == tar.TypeReg && h.Mode&0o111 != 0 {
			program, err = io.ReadAll(r)
		}
		return err
	}); err != nil {
		return nil, err
	}
	names, err := applets(ctx, program)
	if err != nil {
		return nil, err
	}
	return pack(cmd, func(w *tar.Writer) error {
		for _, d := range []string{"bin/", "etc/", "tmp/", "root/"} {
			if err := w.WriteHeader(&tar.Header{Name: d, Typeflag: tar.TypeDir, Mode: 0o755}); err != nil {
				return err
			}
		}
		for _, n := range names {
			if n == "busybox" {
				continue
			}
			if err := w.WriteHeader(&tar.Header{Name: "bin/" + n, Typeflag: tar.TypeSymlink, Linkname: "busybox", Mode: 0o777}); err != nil {
				return err
			}
		}
		return errors.Join(addFile(w, "bin/busybox", 0o755, program),
			addFile(w, "etc/passwd", 0o644, []byte("root:x:0:0:root:/root:/bin/sh\n")), addFile(w, "etc/group", 0o644, []byte("root:x:0:\n")),
			// Its C library, linked statically, crashes without one.
			addFile(w, "etc/nsswitch.conf", 0o644, []byte("hosts: files dns\n")))
	})
}

// applets asks busybox for the names it can be called by.
func applets(ctx context.Context, program []byte) (names []string, err error) {
	f, err := os.CreateTemp("", "busybox-")
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, os.Remove(f.Name())) }()
	_, err = f.Write(program)
	if err := errors.Join(err, f.Chmod(0o755), f.Close()); err != nil {
		return nil, err
	}
	out, err := exec.CommandContext(ctx, f.Name(), "--list").Output()
	if err != nil {
		return nil, fmt.Errorf("busybox --list: %w", err)
	}
	return strings.Fields(string(out)), nil
}

// pack makes an image of one layer, which fill writes.
func pack(cmd []string, fill func(w *tar.Writer) error) (v1.Image, error) {
	var layer bytes.Buffer
	w := tar.NewWriter(&layer)
	if err := errors.Join(fill(w), w.Close()); err != nil {
		return nil, err
	}
	img, err := images.Compose(images.Blob{Bytes: layer.Bytes()})
	if err != nil {
		return nil, err
	}
	return mutate.Config(img, v1.Config{Cmd: cmd, Env: []string{"PATH=/bin"}})
}

func addFile(w *tar.Writer, name string, mode int64, text []byte) error {
	if err := w.WriteHeader(&tar.Header{Name: name, Mode: mode, Size: int64(len(text))}); err != nil {
		return err
	}
	_, err := w.Write(text)
	return err
}
