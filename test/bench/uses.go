package main

import (
	"cmp"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"

	"golang.org/x/sys/unix"
)

// tree is what is in a mounted image, as the uses of it need it.
type tree struct {
	root         string // with the part that is looked at
	paths, dirs  []string
	small, large []string // regular files
	touched      byte     // keeps the compiler from leaving reads of mappings out
}

// smallFile is how long a small file is at most, and largeBytes how much of the
// largest files is read, in all.
const (
	smallFile  = 16 << 10
	smallFiles = 5000
	largeBytes = 256 << 20
	stats      = 20_000
	randomSize = 4 << 10
	randoms    = 4000
)

// readTree walks a part of a container's root, from outside of it.
func readTree(root, part string) (*tree, error) {
	t := &tree{root: filepath.Join(root, part)}
	type sized struct {
		path string
		size int64
	}
	var files []sized
	err := filepath.WalkDir(t.root, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		t.paths = append(t.paths, path)
		if d.IsDir() {
			t.dirs = append(t.dirs, path)
		}
		if !d.Type().IsRegular() {
			return nil
		}
		info, err := d.Info()
		if err != nil {
			return err
		}
		files = append(files, sized{path, info.Size()})
		if info.Size() <= smallFile && len(t.small) < smallFiles {
			t.small = append(t.small, path)
		}
		return nil
	})
	slices.SortFunc(files, func(a, b sized) int { return cmp.Or(cmp.Compare(b.size, a.size), cmp.Compare(a.path, b.path)) })
	var sum int64
	for _, f := range files {
		if sum += f.size; len(t.large) > 0 && (sum > largeBytes || f.size < 1<<20) {
			break
		}
		t.large = append(t.large, f.path)
	}
	if err == nil && len(t.large) == 0 {
		err = fmt.Errorf("no files below %s", t.root)
	}
	return t, err
}

// use is one thing that is done with a tree; cold ones begin with a dropped page cache.
type use struct {
	name string
	cold bool
	use  func(t *tree) error
	// most is how long it may take by what it takes on overlayfs; 0 for no target.
	most float64
}

func uses() []use {
	return []use{
		{"walk", false, (*tree).walk, 1.0},
		{"walk, cold", true, (*tree).walk, 0},
		{"20k stats", false, (*tree).stat, 1.0},
		{"20k missing paths", false, (*tree).miss, 1.0},
		{"5k small files", false, (*tree).readSmall, 1.05},
		{"5k small files, cold", true, (*tree).readSmall, 0},
		{"sequential read, cold", true, (*tree).readLarge, 1 / 0.97},
		{"random reads, cold", true, (*tree).readRandom, 1 / 0.97},
		{"mmap, cold", true, (*tree).mapLarge, 1 / 0.97},
		{"sequential read", false, (*tree).readLarge, 0},
	}
}

func (t *tree) walk() error {
	n := 0
	err := filepath.WalkDir(t.root, func(_ string, _ fs.DirEntry, err error) error {
		n++
		return err
	})
	if err == nil && n != len(t.paths) {
		err = fmt.Errorf("%d entries, %d before", n, len(t.paths))
	}
	return err
}

func (t *tree) stat() error {
	for i := range stats {
		if _, err := os.Lstat(t.paths[i%len(t.paths)]); err != nil {
			return err
		}
	}
	return nil
}

func (t *tree) miss() error {
	for i := range stats {
		path := filepath.Join(t.dirs[i%len(t.dirs)], fmt.Sprintf("missing-%d", i%1000))
		if _, err := os.Lstat(path); !errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("%s is not missing: %w", path, err)
		}
	}
	return nil
}

func (t *tree) readSmall() error { return readFiles(t.small) }
func (t *tree) readLarge() error { return readFiles(t.large) }

// readAll reads every regular file, so that all of the image has come.
func (t *tree) readAll() error {
	var regular []string
	for _, p := range t.paths {
		if info, err := os.Lstat(p); err != nil {
			return err
		} else if info.Mode().IsRegular() {
			regular = append(regular, p)
		}
	}
	return readFiles(regular)
}

func readFiles(paths []string) error {
	buffer := make([]byte, 1<<20)
	for _, p := range paths {
		f, err := os.Open(p)
		if err != nil {
			return err
		}
		for err == nil {
			_, err = f.Read(buffer)
		}
		if err := f.Close(); err != nil {
			return err
		}
		if !errors.Is(err, io.EOF) {
			return err
		}
	}
	return nil
}

func (t *tree) readRandom() error {
	rng := rand.New(rand.NewPCG(3, 4))
	var files []*os.File
	defer func() {
		for _, f := range files {
			_ = f.Close() // only read
		}
	}()
	var sizes []int64
	for _, p := range t.large {
		f, err := os.Open(p)
		if err != nil {
			return err
		}
		files = append(files, f)
		info, err := f.Stat()
		if err != nil {
			return err
		}
		sizes = append(sizes, info.Size())
	}
	buffer := make([]byte, randomSize)
	for range randoms {
		i := rng.IntN(len(files))
		if _, err := files[i].ReadAt(buffer, rng.Int64N(max(1, sizes[i]-randomSize))); err != nil && !errors.Is(err, io.EOF) {
			return err
		}
	}
	return nil
}

// mapLarge touches each page of the large files through a mapping, in order.
func (t *tree) mapLarge() error {
	for _, p := range t.large {
		if err := t.touch(p); err != nil {
			return err
		}
	}
	return nil
}

func (t *tree) touch(path string) (err error) {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	info, err := f.Stat()
	if err != nil || info.Size() == 0 {
		return err
	}
	m, err := unix.Mmap(int(f.Fd()), 0, int(info.Size()), unix.PROT_READ, unix.MAP_SHARED)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, unix.Munmap(m)) }()
	for i := 0; i < len(m); i += os.Getpagesize() {
		t.touched += m[i]
	}
	return nil
}
