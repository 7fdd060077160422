package startup

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/apparate/apparate/api/profile"
)

const (
	samplesDir = "samples"
	tablesDir  = "profiles"
	// maxSamples is how many samples are kept, the newest.
	maxSamples = 64
	sampleExt  = ".json"
)

// samples are files, one a sample, whose names ascend with time. They are read when
// somebody asks: nobody needs them in memory.
type samples struct {
	dir string
	mu  sync.Mutex
}

// add keeps a sample, and removes the oldest.
func (s *samples) add(one profile.Sample) error {
	b, err := json.Marshal(one)
	if err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	name := fmt.Sprintf("%020d-%.16s", one.Started.UnixNano(), strings.TrimPrefix(one.Manifest, "sha256:"))
	if err := replaceFile(filepath.Join(s.dir, name+sampleExt), b); err != nil {
		return err
	}
	names, err := s.names()
	if err != nil {
		return err
	}
	for len(names) > maxSamples {
		if err := os.Remove(filepath.Join(s.dir, names[0])); err != nil {
			return err
		}
		names = names[1:]
	}
	return nil
}

// names are the files, the oldest first.
func (s *samples) names() ([]string, error) {
	list, err := os.ReadDir(s.dir)
	if err != nil {
		return nil, err
	}
	var names []string
	for _, f := range list {
		if strings.HasSuffix(f.Name(), sampleExt) {
			names = append(names, f.Name())
		}
	}
	slices.Sort(names)
	return names, nil
}

// write writes the samples whose recording ended since then as a JSON array, the oldest
// first. A file that is no sample is left out.
func (s *samples) write(w io.Writer, since time.Time) error {
	names, err := s.names()
	if err != nil {
		return err
	}
	if _, err := io.WriteString(w, "["); err != nil {
		return err
	}
	sep := ""
	for _, name := range names {
		path := filepath.Join(s.dir, name)
		if fi, err := os.Stat(path); err == nil && fi.ModTime().Before(since) {
			continue
		}
		b, err := os.ReadFile(path)
		if errors.Is(err, fs.ErrNotExist) {
			continue // removed meanwhile
		}
		if err != nil {
			return err
		}
		if !json.Valid(b) {
			continue
		}
		if _, err := io.WriteString(w, sep+"\n"); err != nil {
			return err
		}
		if _, err := w.Write(b); err != nil {
			return err
		}
		sep = ","
	}
	_, err = io.WriteString(w, "\n]\n")
	return err
}

// replaceFile writes a file as a whole.
func replaceFile(path string, b []byte) error {
	tmp := path + ".tmp"
	if err := os.WriteFile(tmp, b, 0o600); err != nil {
		return errors.Join(err, os.Remove(tmp))
	}
	return os.Rename(tmp, path)
}
