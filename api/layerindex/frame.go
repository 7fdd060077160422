package layerindex

import (
	"encoding/binary"
	"fmt"
)

// An index member is the header of RFC 1952, section 2.3, with an extra field of one
// subfield, an empty stored block, and the checksum and length of nothing.
const (
	subfield    = "LI"
	maxSubfield = 1<<16 - 1 - 4
	headSize    = 10 + 2 + 4
	tailSize    = 5 + 8
)

// head and tail are what does not change in a member.
var (
	head = [...]byte{0x1f, 0x8b, 8, 4 /* FEXTRA */, 0, 0, 0, 0, 0, 255 /* unknown OS */}
	tail = [tailSize]byte{1, 0, 0, 0xff, 0xff}
)

// MemberSize is how many bytes of payload a member holds at most.
const MemberSize = maxSubfield

// MembersSize is how many bytes of a blob a payload of size bytes takes.
func MembersSize(size int64) int64 {
	return size + (size+maxSubfield-1)/maxSubfield*(headSize+tailSize)
}

// AppendMembers appends the gzip members that carry a payload. A payload may come in
// pieces: all but the last are then multiples of MemberSize.
func AppendMembers(dst, payload []byte) []byte {
	for len(payload) > 0 {
		n := min(len(payload), maxSubfield)
		dst = append(dst, head[:]...)
		dst = binary.LittleEndian.AppendUint16(dst, uint16(4+n))
		dst = append(dst, subfield...)
		dst = binary.LittleEndian.AppendUint16(dst, uint16(n))
		dst = append(dst, payload[:n]...)
		dst = append(dst, tail[:]...)
		payload = payload[n:]
	}
	return dst
}

// frameMagic begins the skippable frame (RFC 8878, section 3.1.2) that carries a payload
// in a layer of zstd frames. Of the sixteen such magics others use the first.
const frameMagic = 0x184d2a5a

// FrameHeaderSize is how many bytes of a blob the skippable frame takes beside the payload.
const FrameHeaderSize = 4 + 4

// FrameHeader returns what stands before a payload of size bytes, at most MaxPayload, in
// the skippable frame that carries it in a layer of zstd frames.
func FrameHeader(size int64) []byte {
	return binary.LittleEndian.AppendUint32(binary.LittleEndian.AppendUint32(nil, frameMagic), uint32(size))
}

// Payload returns the payload of the gzip members, or of the skippable frame, that are
// all of b. It uses b's memory, so that what was in b is lost. The error wraps ErrCorrupt.
func Payload(b []byte) ([]byte, error) {
	if len(b) >= FrameHeaderSize && binary.LittleEndian.Uint32(b) == frameMagic {
		if uint64(binary.LittleEndian.Uint32(b[4:])) != uint64(len(b)-FrameHeaderSize) {
			return nil, fmt.Errorf("%w: the frame of the index is cut off", ErrCorrupt)
		}
		return b[FrameHeaderSize:], nil
	}
	out := b[:0]
	for len(b) > 0 {
		n, err := member(b)
		if err != nil {
			return nil, err
		}
		out = append(out, b[headSize:headSize+n]...) // moves to the left
		b = b[headSize+n+tailSize:]
	}
	return out, nil
}

// member returns how much payload the first member of b has.
func member(b []byte) (int, error) {
	if len(b) < headSize || [len(head)]byte(b) != head || string(b[12:14]) != subfield {
		return 0, fmt.Errorf("%w: no index where one should be", ErrCorrupt)
	}
	extra, n := int(binary.LittleEndian.Uint16(b[10:])), int(binary.LittleEndian.Uint16(b[14:]))
	if extra != n+4 || n == 0 || len(b) < headSize+n+tailSize || [tailSize]byte(b[headSize+n:]) != tail {
		return 0, fmt.Errorf("%w: a member of the index is cut off", ErrCorrupt)
	}
	return n, nil
}

func limit(format string, args ...any) error {
	return fmt.Errorf("%w: %s", ErrLimit, fmt.Sprintf(format, args...))
}
