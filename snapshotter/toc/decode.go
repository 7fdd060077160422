package toc

import (
	"encoding/base64"
	"encoding/hex"
	"errors"
	"io"
	"strings"

	"github.com/opencontainers/go-digest"
)

// kind is the "type" of a TOC entry.
type kind uint8

// The kinds: those of Type, and further chunks of a file.
const (
	kindNone  = kind(0)
	kindChunk = kind(Fifo) + 1
)

// rawEntry is one element of the TOC's entries as written (eStargz
// specification, "TOCEntry"), without the fields that we do not use.
type rawEntry struct {
	name, link             []byte
	kind                   kind
	mode, uid, gid         int64
	size                   int64
	sec                    int64
	nsec                   uint32
	devMajor, devMinor     int64
	offset, inner          int64
	chunkOffset, chunkSize int64
	chunkDigest            [32]byte
	hasDigest              bool
	fileDigest             []byte // of the whole file, as written
	content                content
	xattrs                 map[string][]byte
	shared                 bool // xattrs is the map of an earlier entry
}

// reset empties e and keeps its buffers.
func (e *rawEntry) reset() {
	*e = rawEntry{name: e.name[:0], link: e.link[:0], fileDigest: e.fileDigest[:0]}
}

// content is the "chunkType" of an entry, which containers/storage writes.
type content uint8

const (
	contentData content = iota
	contentZeros
	contentUnknown
)

// useFileDigest makes the digest of the whole file that of its only chunk:
// containers/storage writes no other then. It is false where there is none.
func (e *rawEntry) useFileDigest() bool {
	e.hasDigest = parseDigest(&e.chunkDigest, e.fileDigest) == nil
	return e.hasDigest
}

// fail says what is wrong with e.
func (e *rawEntry) fail(kind error, what string) error {
	return &Error{Kind: kind, Entry: string(e.name), What: what}
}

// decode reads the JSON of a TOC and calls add for each entry, in order. What
// add gets is valid until it returns, but for the xattrs, which it may keep.
// Where a key occurs twice in an entry, the last one counts.
func decode(s *scanner, add func(*rawEntry) error) error {
	d := decoder{scanner: s}
	var version int64
	seen := false
	err := s.object(func(key []byte) (err error) {
		switch string(key) {
		case "version":
			version, err = s.integer()
			return err
		case "entries":
			if seen {
				return s.fail("two lists of entries")
			}
			seen = true
			return s.array(func() error {
				if err := d.entry(); err != nil {
					return err
				}
				return add(&d.e)
			})
		}
		return s.skip()
	})
	if err != nil {
		return err
	}
	if s.peek() != 0 || s.pos < s.end {
		return s.fail("something follows the TOC")
	}
	if !errors.Is(s.readErr, io.EOF) {
		return s.fail("")
	}
	if version != 1 {
		return failf(ErrUnsupported, "its version is %d, only 1 is known", version)
	}
	return nil
}

// decoder reads entries.
type decoder struct {
	*scanner
	e      rawEntry
	xattrs map[string][]byte // those of an earlier entry, to share
}

// entry reads one entry into d.e.
func (d *decoder) entry() error {
	d.e.reset()
	return d.object(d.field)
}

// field reads one field of an entry.
func (d *decoder) field(key []byte) (err error) {
	e := &d.e
	switch string(key) {
	case "name":
		err = d.copyText(&e.name)
	case "linkName":
		err = d.copyText(&e.link)
	case "type":
		err = d.kindField()
	case "modtime":
		err = d.timeField()
	case "chunkDigest":
		err = d.digestField()
	case "digest":
		err = d.fileDigestField()
	case "chunkType":
		err = d.contentField()
	case "xattrs":
		err = d.xattrsField()
	case "size":
		e.size, err = d.integer()
	case "mode":
		e.mode, err = d.integer()
	case "uid":
		e.uid, err = d.integer()
	case "gid":
		e.gid, err = d.integer()
	case "offset":
		e.offset, err = d.integer()
	case "innerOffset":
		e.inner, err = d.integer()
	case "devMajor":
		e.devMajor, err = d.integer()
	case "devMinor":
		e.devMinor, err = d.integer()
	case "chunkOffset":
		e.chunkOffset, err = d.integer()
	case "chunkSize":
		e.chunkSize, err = d.integer()
	default:
		err = d.skip()
	}
	return err
}

// copyText reads a string into dst, whose memory it uses.
func (d *decoder) copyText(dst *[]byte) error {
	t, err := d.text()
	*dst = append((*dst)[:0], t...)
	return err
}

// kindField reads the type of an entry.
func (d *decoder) kindField() error {
	t, err := d.text()
	if err != nil {
		return err
	}
	switch string(t) {
	case "dir":
		d.e.kind = kind(Dir)
	case "reg":
		d.e.kind = kind(Reg)
	case "symlink":
		d.e.kind = kind(Symlink)
	case "hardlink":
		d.e.kind = kind(Hardlink)
	case "char":
		d.e.kind = kind(Char)
	case "block":
		d.e.kind = kind(Block)
	case "fifo":
		d.e.kind = kind(Fifo)
	case "chunk":
		d.e.kind = kindChunk
	default:
		d.e.kind = kindNone
	}
	return nil
}

// timeField reads the modification time of an entry.
func (d *decoder) timeField() error {
	t, err := d.text()
	if err != nil {
		return err
	}
	d.e.sec, d.e.nsec = 0, 0
	if len(t) == 0 {
		return nil // unknown
	}
	var ok bool
	if d.e.sec, d.e.nsec, ok = parseTime(t); !ok {
		return d.fail("the modification time is not RFC 3339")
	}
	return nil
}

// digestField reads the digest of a chunk.
func (d *decoder) digestField() error {
	t, err := d.text()
	if err != nil {
		return err
	}
	d.e.hasDigest = false
	if len(t) == 0 {
		return nil
	}
	err = parseDigest(&d.e.chunkDigest, t)
	if errors.Is(err, errNotHex) {
		return d.fail("a chunk's digest is not hexadecimal")
	}
	d.e.hasDigest = err == nil
	return err
}

var errNotHex = errors.New("not hexadecimal")

// parseDigest reads a digest as it is written.
func parseDigest(to *[32]byte, t []byte) error {
	const prefix = string(digest.SHA256) + ":"
	if len(t) != len(prefix)+hex.EncodedLen(len(to)) || string(t[:len(prefix)]) != prefix {
		return failf(ErrUnsupported, "a chunk's digest is %.80q, only sha256 is supported", t)
	}
	if _, err := hex.Decode(to[:], t[len(prefix):]); err != nil {
		return errNotHex
	}
	return nil
}

// fileDigestField keeps the digest of a file. It is looked at only where nothing else
// says what its content is.
func (d *decoder) fileDigestField() error {
	d.e.fileDigest = d.e.fileDigest[:0]
	if d.peek() != '"' {
		return d.skip()
	}
	return d.copyText(&d.e.fileDigest)
}

// contentField reads what a chunk holds.
func (d *decoder) contentField() error {
	if d.e.content = contentUnknown; d.peek() != '"' {
		return d.skip()
	}
	t, err := d.text()
	switch string(t) {
	case "":
		d.e.content = contentData
	case "zeros":
		d.e.content = contentZeros
	}
	return err
}

// xattrsField reads the extended attributes of an entry: an object of base64.
func (d *decoder) xattrsField() error {
	d.e.xattrs, d.e.shared = nil, false
	if isNull, err := d.null(); isNull || err != nil {
		return err
	}
	m := make(map[string][]byte)
	err := d.object(func(key []byte) error {
		if len(m) >= maxXattrs || len(key) > maxXattrName {
			return failf(ErrLimit, "an entry has more than %d extended attributes, or the name of one more than %d bytes", maxXattrs, maxXattrName)
		}
		name := string(key)
		t, err := d.text()
		if err != nil {
			return err
		}
		value := make([]byte, base64.StdEncoding.DecodedLen(len(t)))
		n, err := base64.StdEncoding.Decode(value, t)
		if err != nil {
			return d.fail("an extended attribute is not base64")
		}
		m[name] = value[:n:n]
		return nil
	})
	if err != nil || len(m) == 0 {
		return err
	}
	// Neighbours tend to have the same ones, such as a security label.
	if d.e.shared = sameXattrs(m, d.xattrs); d.e.shared {
		m = d.xattrs
	}
	d.xattrs, d.e.xattrs = m, m
	return nil
}

// sameXattrs says whether a and b are equal.
func sameXattrs(a, b map[string][]byte) bool {
	if len(a) != len(b) {
		return false
	}
	for k, v := range a {
		w, ok := b[k]
		if !ok || string(v) != string(w) {
			return false
		}
	}
	return true
}

// arena makes strings that share memory, to save an allocation for each.
type arena struct{ b strings.Builder }

// arenaSize is the memory that strings share, in bytes.
const arenaSize = 32 << 10

// str returns p as a string.
func (a *arena) str(p []byte) string {
	if len(p) == 0 {
		return ""
	}
	if a.b.Cap()-a.b.Len() < len(p) {
		a.b = strings.Builder{} // the old memory lives on in its strings
		a.b.Grow(max(arenaSize, len(p)))
	}
	from := a.b.Len()
	_, _ = a.b.Write(p) // never fails
	return a.b.String()[from:]
}
