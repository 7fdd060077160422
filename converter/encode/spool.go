package encode

import (
	"bytes"
	"fmt"
	"io"
	"os"
)

// spoolLimit is how much of what waits for the end of a layer stays in memory, of each
// of the TOC and the index.
const spoolLimit = 4 << 20

// spool is a buffer that goes on in a temporary file once it is long.
type spool struct {
	dir  string
	mem  bytes.Buffer
	file *os.File // nil while mem is short; has no name, so that nothing is left of it
	size int64    // of all that was written
}

// Write appends p. The spool is of no use after an error.
func (s *spool) Write(p []byte) (int, error) {
	s.mem.Write(p)
	s.size += int64(len(p))
	if s.mem.Len() < spoolLimit {
		return len(p), nil
	}
	if s.file == nil {
		f, err := TempFile(s.dir)
		if err != nil {
			return 0, fmt.Errorf("temporary file for the TOC: %w", err)
		}
		s.file = f
	}
	if _, err := s.file.Write(s.mem.Bytes()); err != nil {
		return 0, fmt.Errorf("write TOC: %w", err)
	}
	s.mem.Reset()
	return len(p), nil
}

// open returns all that was written.
func (s *spool) open() io.Reader {
	rest := bytes.NewReader(s.mem.Bytes())
	if s.file == nil {
		return rest
	}
	return io.MultiReader(io.NewSectionReader(s.file, 0, s.size-int64(s.mem.Len())), rest)
}

func (s *spool) close() {
	if s.file != nil {
		_ = s.file.Close() // it was read already, or is of no use
	}
}

// TempFile opens a new file in dir (empty: the system's directory for such
// files) and removes its name at once, so that its space is free again however
// the process ends.
func TempFile(dir string) (*os.File, error) {
	f, err := os.CreateTemp(dir, "apparate-*")
	if err != nil {
		return nil, err
	}
	if err := os.Remove(f.Name()); err != nil {
		_ = f.Close() // the first error says more
		return nil, err
	}
	return f, nil
}
