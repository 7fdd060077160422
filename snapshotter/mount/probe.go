package mount

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"github.com/apparate/apparate/snapshotter/erofs"
	"github.com/apparate/apparate/snapshotter/toc"
	"github.com/apparate/apparate/snapshotter/tree"
)

// Probe tries whether images can be mounted on this machine, below dir: it mounts
// a real EROFS image of one file, whose content is on a second file as on a
// layer's, compares what it reads, and takes everything away again. The error says
// in one line what is missing: root, EROFS, or mounting it from files. FUSE is not
// tried; blobfs.Connect does that.
func Probe(dir string) (err error) {
	if os.Geteuid() != 0 {
		return errors.New("images can only be mounted by root")
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return fmt.Errorf("probe EROFS: %w", err)
	}
	tmp, err := os.MkdirTemp(dir, "probe-")
	if err != nil {
		return fmt.Errorf("probe EROFS: %w", err)
	}
	defer func() { err = errors.Join(err, os.RemoveAll(tmp)) }()
	if err := probe(tmp); err != nil {
		return fmt.Errorf("probe EROFS: %w", err)
	}
	return nil
}

func probe(tmp string) error {
	// Two blocks, so that an address that is not zero is read.
	data := append(bytes.Repeat([]byte{0}, toc.BlockSize), bytes.Repeat([]byte{0xA5}, toc.BlockSize)...)
	root := &tree.Node{Type: toc.Dir, Mode: 0o755, Nlink: 2, Children: []tree.Child{{Name: "file",
		Node: &tree.Node{Type: toc.Reg, Mode: 0o644, Nlink: 1, Size: toc.BlockSize, Addr: toc.BlockSize}}}}
	img, err := erofs.Build(root, []int64{int64(len(data))})
	if err != nil {
		return err
	}
	image, device, dir := filepath.Join(tmp, "image"), filepath.Join(tmp, "device"), filepath.Join(tmp, "root")
	if err := errors.Join(os.WriteFile(image, img, 0o600), os.WriteFile(device, data, 0o600), os.Mkdir(dir, 0o700)); err != nil {
		return err
	}
	e := &EROFS{}
	if err := e.Mount(context.Background(), image, []string{device}, dir); err != nil {
		return err
	}
	got, err := os.ReadFile(filepath.Join(dir, "file"))
	if err == nil && !bytes.Equal(got, data[toc.BlockSize:]) {
		err = errors.New("the kernel read other bytes than were written")
	}
	return errors.Join(err, e.Unmount(dir))
}
