package mount

import (
	"errors"
	"io"
	"io/fs"
	"os"
	"path/filepath"
)

// lookedAt is how many names are looked at for a file to read.
const lookedAt = 4096

// readable reads the first file with content below dir that it comes to, at its beginning
// and its end. Some file systems promise reads past the page cache and refuse them later,
// when a container would be who reads.
func readable(dir string) error {
	seen := 0
	return filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if seen++; seen > lookedAt {
			return filepath.SkipAll
		}
		if !d.Type().IsRegular() {
			return nil
		}
		info, err := d.Info()
		if err != nil || info.Size() == 0 {
			return err
		}
		f, err := os.Open(path)
		if err != nil {
			return err
		}
		var b [1]byte
		for _, at := range []int64{0, info.Size() - 1} {
			if _, rerr := f.ReadAt(b[:], at); rerr != nil && !errors.Is(rerr, io.EOF) {
				err = errors.Join(err, rerr)
			}
		}
		if err = errors.Join(err, f.Close()); err != nil {
			return err
		}
		return filepath.SkipAll
	})
}
