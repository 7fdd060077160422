package encode

import (
	"archive/tar"
	"errors"
	"fmt"
	"io"

	"github.com/klauspost/compress/flate"
	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zstd"
)

// UnsupportedError says that the archive is sound but holds something that a
// TOC cannot express. The layer still works as an ordinary layer.
type UnsupportedError struct {
	// Entry is the tar entry's name; Reason says what is the matter with it.
	Entry, Reason string
}

// Error names the entry and the reason.
func (e *UnsupportedError) Error() string {
	return fmt.Sprintf("entry %q: %s", e.Entry, e.Reason)
}

// CorruptError says that the stream is no valid tar, gzip or zstd.
type CorruptError struct {
	// After is the last entry that could be read; empty for the first.
	After string
	Err   error
}

// Error says where the archive broke.
func (e *CorruptError) Error() string {
	if e.After == "" {
		return fmt.Sprintf("broken archive: %v", e.Err)
	}
	return fmt.Sprintf("broken archive after entry %q: %v", e.After, e.Err)
}

// Unwrap gives the decoder's error.
func (e *CorruptError) Unwrap() error { return e.Err }

// errHeaders is what an endless run of extension headers ends in.
var errHeaders = errors.New("the headers of one entry are longer than 4 MiB")

// readError tells a broken archive from a reader that failed, for instance
// because the network did: the former stays broken when tried again.
func readError(after string, err error) error {
	var corruptInput flate.CorruptInputError
	for _, broken := range []error{
		tar.ErrHeader, tar.ErrFieldTooLong, io.ErrUnexpectedEOF, errHeaders,
		gzip.ErrHeader, gzip.ErrChecksum,
		zstd.ErrMagicMismatch, zstd.ErrCRCMismatch, zstd.ErrReservedBlockType, zstd.ErrCompressedSizeTooBig,
		zstd.ErrBlockTooSmall, zstd.ErrUnexpectedBlockSize, zstd.ErrWindowSizeTooSmall, zstd.ErrWindowSizeExceeded,
		zstd.ErrFrameSizeExceeded, zstd.ErrFrameSizeMismatch, zstd.ErrUnknownDictionary,
	} {
		if errors.Is(err, broken) {
			return &CorruptError{After: after, Err: err}
		}
	}
	if errors.As(err, &corruptInput) {
		return &CorruptError{After: after, Err: err}
	}
	return fmt.Errorf("read tar: %w", err)
}
