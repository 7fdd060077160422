package encode

import (
	"bytes"
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"hash"

	"github.com/opencontainers/go-digest"
)

// tocWriter collects the TOC JSON, because its tar header has to say how long it is.
type tocWriter struct {
	spool
	sum hash.Hash
	buf bytes.Buffer // one entry
	enc *json.Encoder
	n   int
}

func newTOCWriter(dir string) *tocWriter {
	t := &tocWriter{spool: spool{dir: dir}, sum: sha256.New()}
	t.enc = json.NewEncoder(&t.buf)
	// "<" and ">" in names are longer escaped, and nobody reads this as HTML.
	t.enc.SetEscapeHTML(false)
	return t
}

// entry appends one entry, on a line of its own.
func (t *tocWriter) entry(e *entry) error {
	sep := ",\n"
	if t.n == 0 {
		sep = `{"version":1,"entries":[` + "\n"
	}
	t.n++
	t.buf.WriteString(sep)
	if err := t.enc.Encode(e); err != nil {
		return fmt.Errorf("TOC entry %q: %w", e.Name, err)
	}
	t.buf.Truncate(t.buf.Len() - 1) // the encoder's newline
	return t.flush()
}

// end closes the JSON and returns its digest. The last byte is the brace: stargz's
// reader hashes no further than its JSON decoder reads.
func (t *tocWriter) end() (digest.Digest, error) {
	if t.n == 0 {
		t.buf.WriteString(`{"version":1,"entries":[`)
	}
	t.buf.WriteString("\n]}")
	if err := t.flush(); err != nil {
		return "", err
	}
	return digest.NewDigest(digest.SHA256, t.sum), nil
}

// flush moves the text on.
func (t *tocWriter) flush() error {
	_, _ = t.sum.Write(t.buf.Bytes()) // a hash returns no error
	_, err := t.Write(t.buf.Bytes())
	t.buf.Reset()
	return err
}
