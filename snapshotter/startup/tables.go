package startup

import (
	"crypto/sha256"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/apparate/apparate/api/profile"
)

// maxTables is how many tables are kept, the newest.
const maxTables = 256

// tables are the profiles that were used here: a file for each image, and one for each
// repository with the newest of its images. They are no more trusted than a registry.
type tables struct{ dir string }

func (t *tables) imageFile(d digest.Digest) string {
	return filepath.Join(t.dir, "image-"+d.Algorithm().String()+"-"+d.Encoded())
}

func (t *tables) repositoryFile(repo string) string {
	return filepath.Join(t.dir, fmt.Sprintf("repository-%x", sha256.Sum256([]byte(repo))))
}

// keep writes a table under both names, and removes the oldest files.
func (t *tables) keep(manifest digest.Digest, repo string, b []byte) error {
	if err := manifest.Validate(); err != nil {
		return err
	}
	err := errors.Join(replaceFile(t.imageFile(manifest), b), replaceFile(t.repositoryFile(repo), b))
	return errors.Join(err, t.sweep())
}

// ofImage returns the table of an image and how long ago it was kept; nil when there
// is none.
func (t *tables) ofImage(manifest digest.Digest) (*profile.Table, time.Duration) {
	if manifest.Validate() != nil {
		return nil, 0
	}
	return t.read(t.imageFile(manifest))
}

// ofRepository returns the newest table of a repository; nil when there is none.
func (t *tables) ofRepository(repo string) *profile.Table {
	table, _ := t.read(t.repositoryFile(repo))
	return table
}

func (t *tables) read(path string) (*profile.Table, time.Duration) {
	st, err := os.Stat(path)
	if err != nil || st.Size() > profile.MaxTable {
		return nil, 0
	}
	b, err := os.ReadFile(path)
	if err != nil {
		return nil, 0
	}
	table, err := profile.Decode(b)
	if err != nil {
		return nil, 0
	}
	return table, time.Since(st.ModTime())
}

// sweep removes the oldest files beyond maxTables.
func (t *tables) sweep() error {
	list, err := os.ReadDir(t.dir)
	if err != nil || len(list) <= maxTables {
		return err
	}
	files := make([]fs.FileInfo, 0, len(list))
	for _, f := range list {
		info, err := f.Info()
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return err
		}
		files = append(files, info)
	}
	slices.SortFunc(files, func(a, b fs.FileInfo) int { return b.ModTime().Compare(a.ModTime()) })
	for _, f := range files[min(len(files), maxTables):] {
		if err := os.Remove(filepath.Join(t.dir, f.Name())); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	return nil
}
