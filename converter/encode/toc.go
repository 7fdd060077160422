package encode

import (
	"bytes"
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"hash"
	"io"
	"os"

	"github.com/opencontainers/go-digest"
)

// spoolLimit is how much of the TOC JSON stays in memory.
const spoolLimit = 4 << 20

// spool collects the TOC JSON, because its tar header has to say how long it is.
type spool struct {
	dir  string
	buf  bytes.Buffer
	file *os.File // nil while buf is short; has no name, so that nothing is left of it
	size int64
	sum  hash.Hash
	enc  *json.Encoder
	n    int
}

func newSpool(dir string) *spool {
	s := &spool{dir: dir, sum: sha256.New()}
	s.enc = json.NewEncoder(&s.buf)
	// "<" and ">" in names are longer escaped, and nobody reads this as HTML.
	s.enc.SetEscapeHTML(false)
	return s
}

// entry appends one entry, on a line of its own.
func (s *spool) entry(e *entry) error {
	sep := ",\n"
	if s.n == 0 {
		sep = `{"version":1,"entries":[` + "\n"
	}
	s.n++
	s.buf.WriteString(sep)
	if err := s.enc.Encode(e); err != nil {
		return fmt.Errorf("TOC entry %q: %w", e.Name, err)
	}
	s.buf.Truncate(s.buf.Len() - 1) // the encoder's newline
	if s.buf.Len() >= spoolLimit {
		return s.flush()
	}
	return nil
}

// end closes the JSON and returns its digest and length. The last byte is the
// brace: stargz's reader hashes no further than its JSON decoder reads.
func (s *spool) end() (digest.Digest, int64, error) {
	if s.n == 0 {
		s.buf.WriteString(`{"version":1,"entries":[`)
	}
	s.buf.WriteString("\n]}")
	_, _ = s.sum.Write(s.buf.Bytes()) // a hash returns no error
	return digest.NewDigest(digest.SHA256, s.sum), s.size + int64(s.buf.Len()), nil
}

// flush moves the buffer to the temporary file.
func (s *spool) flush() error {
	if s.file == nil {
		f, err := TempFile(s.dir)
		if err != nil {
			return fmt.Errorf("temporary file for the TOC: %w", err)
		}
		s.file = f
	}
	_, _ = s.sum.Write(s.buf.Bytes()) // a hash returns no error
	n, err := s.file.Write(s.buf.Bytes())
	if err != nil {
		return fmt.Errorf("write TOC: %w", err)
	}
	s.size += int64(n)
	s.buf.Reset()
	return nil
}

// copyTo writes the whole JSON to w.
func (s *spool) copyTo(w io.Writer) error {
	if s.file != nil {
		if _, err := io.Copy(w, io.NewSectionReader(s.file, 0, s.size)); err != nil {
			return fmt.Errorf("read TOC back: %w", err)
		}
	}
	_, err := w.Write(s.buf.Bytes())
	return err
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
