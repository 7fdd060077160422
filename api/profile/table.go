package profile

import (
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"math"
	"strings"
)

// magic begins an encoded table and names its version.
const magic = "APPRPRF1"

const digestPrefix = "sha256:"

// Encode returns the table in its binary form, or an error if it is beyond a
// limit of this package or contradicts itself. After the magic "APPRPRF1":
//
//	32 bytes  SHA-256 of the pack
//	uvarint   size of the pack
//	uvarint   number of groups, and for each:
//	  uvarint   size of the frame
//	  uvarint   number of chunks, and for each:
//	    8 bytes   ID, big endian
//	    uvarint   size of the content
//	    varint    At, less the At of the chunk before (0 for the first of the table)
//
// with varints as encoding/binary has them.
func (t *Table) Encode() ([]byte, error) {
	if err := t.check(); err != nil {
		return nil, err
	}
	sum, err := hex.DecodeString(strings.TrimPrefix(t.Pack, digestPrefix))
	if err != nil {
		return nil, fmt.Errorf("the profile table's pack digest: %w", err)
	}
	b := make([]byte, 0, len(magic)+len(sum)+32+t.Chunks()*13+len(t.Groups)*6)
	b = append(b, magic...)
	b = append(b, sum...)
	b = binary.AppendUvarint(b, uint64(t.Size))
	b = binary.AppendUvarint(b, uint64(len(t.Groups)))
	last := int64(0)
	for i := range t.Groups {
		g := &t.Groups[i]
		b = binary.AppendUvarint(b, uint64(g.Size))
		b = binary.AppendUvarint(b, uint64(len(g.Chunks)))
		for _, c := range g.Chunks {
			b = binary.BigEndian.AppendUint64(b, c.ID)
			b = binary.AppendUvarint(b, uint64(c.Size))
			b = binary.AppendVarint(b, int64(c.At)-last)
			last = int64(c.At)
		}
	}
	if len(b) > MaxTable {
		return nil, fmt.Errorf("the profile table takes %d bytes, and %d is the limit", len(b), MaxTable)
	}
	return b, nil
}

// Decode reads what Encode wrote. It takes bytes of any origin: its memory is
// bounded by the length of b and by the limits of this package.
func Decode(b []byte) (*Table, error) {
	if len(b) > MaxTable {
		return nil, fmt.Errorf("the profile table has %d bytes, and %d is the limit", len(b), MaxTable)
	}
	if len(b) < len(magic)+32 || string(b[:len(magic)]) != magic {
		return nil, errors.New("not a profile table, or one of a later version")
	}
	r := reader{rest: b[len(magic):]}
	t := &Table{Pack: digestPrefix + hex.EncodeToString(r.take(32))}
	t.Size = r.number(MaxPack)
	// Each group takes two bytes or more, each chunk ten: the number of them is
	// known to be a lie before anything is allocated for it.
	groups := r.number(int64(min(MaxChunks, len(r.rest)/2)))
	if r.bad {
		return nil, errTruncated
	}
	t.Groups = make([]Group, groups)
	left, at := int64(MaxChunks), int64(0)
	for i := range t.Groups {
		g := &t.Groups[i]
		g.Size = r.number(MaxPack)
		chunks := r.number(min(left, int64(len(r.rest)/10)))
		if r.bad {
			return nil, errTruncated
		}
		left -= chunks
		g.Chunks = make([]Chunk, chunks)
		for j := range g.Chunks {
			c := &g.Chunks[j]
			if id := r.take(8); !r.bad {
				c.ID = binary.BigEndian.Uint64(id)
			}
			c.Size = r.number(MaxChunk)
			at = r.next(at)
			if r.bad {
				return nil, errTruncated
			}
			c.At = uint32(at)
		}
	}
	if len(r.rest) != 0 {
		return nil, fmt.Errorf("the profile table has %d bytes too many", len(r.rest))
	}
	if err := t.check(); err != nil {
		return nil, err
	}
	return t, nil
}

var errTruncated = errors.New("the profile table is cut short, or has a number beyond its limits")

// check says whether t is within the limits and agrees with itself.
func (t *Table) check() error {
	hexed, ok := strings.CutPrefix(t.Pack, digestPrefix)
	if !ok || len(hexed) != 64 || strings.Trim(hexed, "0123456789abcdef") != "" {
		return fmt.Errorf("the profile table's pack %q is not a sha256 digest", t.Pack)
	}
	if t.Size <= 0 || t.Size > MaxPack {
		return fmt.Errorf("the profile table's pack has %d bytes: 1 to %d are allowed", t.Size, MaxPack)
	}
	if n := t.Chunks(); n > MaxChunks {
		return fmt.Errorf("the profile table has %d chunks, and %d is the limit", n, MaxChunks)
	}
	sum := int64(0)
	for i := range t.Groups {
		g := &t.Groups[i]
		if len(g.Chunks) == 0 || g.Size <= 0 || g.Size > t.Size-sum {
			return fmt.Errorf("group %d of the profile table is empty or longer than the pack", i)
		}
		sum += g.Size
		content := int64(0)
		for _, c := range g.Chunks {
			if c.Size <= 0 || c.Size > MaxChunk {
				return fmt.Errorf("a chunk in group %d of the profile table has %d bytes: 1 to %d are allowed", i, c.Size, MaxChunk)
			}
			if content += c.Size; content > MaxGroup {
				return fmt.Errorf("group %d of the profile table holds more than %d bytes", i, MaxGroup)
			}
		}
	}
	if sum != t.Size {
		return fmt.Errorf("the groups of the profile table have %d bytes and the pack %d", sum, t.Size)
	}
	return nil
}

// reader takes numbers off the front of rest; once bad it stays bad.
type reader struct {
	rest []byte
	bad  bool
}

func (r *reader) take(n int) []byte {
	if r.bad || len(r.rest) < n {
		r.bad = true
		return nil
	}
	b := r.rest[:n]
	r.rest = r.rest[n:]
	return b
}

// number reads a uvarint of at most limit.
func (r *reader) number(limit int64) int64 {
	v, n := binary.Uvarint(r.rest)
	if r.bad || n <= 0 || limit < 0 || v > uint64(limit) {
		r.bad = true
		return 0
	}
	r.rest = r.rest[n:]
	return int64(v)
}

// next reads a varint that leads from one time to the next.
func (r *reader) next(from int64) int64 {
	v, n := binary.Varint(r.rest)
	if r.bad || n <= 0 || v < -math.MaxUint32 || v > math.MaxUint32 || from+v < 0 || from+v > math.MaxUint32 {
		r.bad = true
		return 0
	}
	r.rest = r.rest[n:]
	return from + v
}
