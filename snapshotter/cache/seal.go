package cache

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"
)

// ErrIncomplete says that a layer lacks chunks, or had some that did not match.
var ErrIncomplete = errors.New("layer is not complete")

const (
	// sealedName is the file that says of a layer that others read its data.
	sealedName = "sealed"
	// sealedPart is which part of the budget layers may take that cannot give up chunks.
	sealedPart = 2
	// hashAtOnce is how many bytes are hashed before others get as long a turn.
	hashAtOnce = 8 << 20
)

// Seal makes the file with the layer's content one that others may read, the kernel
// among them, and returns its name: all chunks are there and verified by this process,
// some of them only now, and none will be evicted. From then on, also after a restart, the
// file's bytes stay as they are until the layer is removed as a whole; who has it open then
// keeps it. [ErrIncomplete] when a chunk is missing, [ErrFull] when layers that cannot
// give up chunks would take more than half of the budget.
func (b *Blob) Seal(ctx context.Context) (file string, err error) {
	if err := b.verifyAll(ctx); err != nil {
		return "", fmt.Errorf("seal layer %s: %w", b.e.key, err)
	}
	if err := b.s.seal(b); err != nil {
		return "", fmt.Errorf("seal layer %s: %w", b.e.key, err)
	}
	return b.data.Name(), nil
}

// verifyAll hashes what an earlier process left, no more than half of the time.
func (b *Blob) verifyAll(ctx context.Context) error {
	began, hashed := time.Now(), int64(0)
	for i := range b.word {
		if b.word[i].Load()&stateMask == unverified {
			hashed += b.idx.Chunks[i].Size
		}
		if ok, err := b.ReadAt(i, nil, 0); err != nil {
			return err
		} else if !ok {
			return ErrIncomplete
		}
		if hashed < hashAtOnce {
			continue
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(time.Since(began)):
		}
		began, hashed = time.Now(), 0
	}
	return ctx.Err()
}

// seal notes, on disk first, that a layer gives up no chunks any more.
func (s *Store) seal(b *Blob) error {
	// No chunk is being evicted meanwhile.
	s.evicting.Lock()
	defer s.evicting.Unlock()
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case s.closed || b.e.blob != b:
		return ErrClosed
	case b.e.sealed:
		if !b.Complete() {
			return ErrIncomplete
		}
		return nil
	}
	all := b.e.data
	for _, e := range s.layers {
		if e.sealed {
			all += e.data
		}
	}
	if s.o.Budget > 0 && all > s.o.Budget/sealedPart {
		return ErrFull
	}
	dir := filepath.Join(s.dir, b.e.key)
	if err := replaceFile(dir, sealedName, nil); err != nil {
		return err
	}
	// In this order: whoever drops a chunk makes it missing first, and looks for the
	// seal then.
	b.sealed.Store(true)
	if !b.Complete() {
		b.sealed.Store(false)
		return errors.Join(ErrIncomplete, os.Remove(filepath.Join(dir, sealedName)))
	}
	b.e.sealed = true
	s.resizeLocked(b.e, b.e.data, dir)
	return nil
}
