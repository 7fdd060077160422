// Package profile holds what a start-up profile is made of: the samples that
// nodes record, the table that says what is in a pack, and the summary for
// people. It does no I/O and imports nothing of this project.
//
// A pack is one blob: zstd frames one after the other, one for each group of its
// table and in the table's order; the content of a frame is the content of the
// group's chunks one after the other. Nothing in a table is believed: a chunk
// belongs where its hash says it does, so a wrong table costs bandwidth only.
package profile

import (
	"encoding/binary"
	"time"
)

// Limits of a table and of a sample. What is beyond them is refused when it is
// written and when it is read.
const (
	// MaxChunks is how many chunks a table, or all layers of one sample, may have.
	MaxChunks = 64 << 10
	// MaxChunk is the longest content of one chunk in bytes.
	MaxChunk = 8 << 20
	// MaxGroup is the longest content of one group in bytes: what a reader must
	// be ready to hold to decode a frame.
	MaxGroup = 16 << 20
	// MaxPack is the longest pack in bytes.
	MaxPack = 1 << 30
	// MaxTable is the longest encoded table in bytes.
	MaxTable = 4 << 20
)

// Table says which chunks a pack holds, in which order, and where its frames end.
type Table struct {
	// Pack is the digest of the pack, "sha256:" and 64 hexadecimal digits.
	Pack string
	// Size of the pack in bytes: the sum of the groups' sizes.
	Size int64
	// Groups in the order of the pack, which is the order of first use.
	Groups []Group
}

// Group is one zstd frame of a pack.
type Group struct {
	// Size of the frame in bytes.
	Size int64
	// Chunks whose content the frame holds, in order; at least one.
	Chunks []Chunk
}

// Chunk is one chunk of a group.
type Chunk struct {
	// ID is ID of the SHA-256 of the content: enough to see what a pack is good
	// for before it is fetched, never a proof of what was fetched.
	ID uint64
	// Size of the content in bytes, 1 to MaxChunk.
	Size int64
	// At is when a start needs the chunk, in milliseconds since its container was created.
	At uint32
}

// ID returns the short form of a chunk's SHA-256: its first 8 bytes, big endian.
func ID(sum [32]byte) uint64 {
	return binary.BigEndian.Uint64(sum[:8])
}

// Chunks returns how many chunks the table has.
func (t *Table) Chunks() int {
	n := 0
	for i := range t.Groups {
		n += len(t.Groups[i].Chunks)
	}
	return n
}

// ContentBytes returns how many bytes the chunks of the table have unpacked.
func (t *Table) ContentBytes() int64 {
	n := int64(0)
	for i := range t.Groups {
		n += t.Groups[i].ContentBytes()
	}
	return n
}

// ContentBytes returns how long the decoded frame is.
func (g *Group) ContentBytes() int64 {
	n := int64(0)
	for i := range g.Chunks {
		n += g.Chunks[i].Size
	}
	return n
}

// Summary says what a profile is worth, for people and for what decides whether
// to make a new one. It is JSON in a manifest's annotation.
type Summary struct {
	// Created is when the profile was made.
	Created time.Time `json:"created"`
	// Samples is how many starts were merged, without the one held out.
	Samples int `json:"samples"`
	// Workloads is how many different workloads these starts belonged to.
	Workloads int `json:"workloads,omitempty"`
	// Chunks in the pack, their ContentBytes unpacked, and the PackBytes of the pack.
	Chunks       int   `json:"chunks"`
	ContentBytes int64 `json:"contentBytes"`
	PackBytes    int64 `json:"packBytes"`
	// HeldOut is how many starts were kept out of the merge to measure Coverage
	// and Waste on: 0 if there was but one, and then these two say nothing.
	HeldOut int `json:"heldOut"`
	// Coverage is the share (0 to 1) of the bytes the held-out start read that the pack has.
	Coverage float64 `json:"coverage"`
	// Waste is the share (0 to 1) of the pack's content that the held-out start did not read.
	Waste float64 `json:"waste"`
	// Without and With are the medians of what the merged starts cost without any
	// profile and with one; nil if there was no such start.
	Without *Outcome `json:"without,omitempty"`
	With    *Outcome `json:"with,omitempty"`
	// CarriedFrom is the digest of the platform manifest whose profile this one
	// was taken over from, "" if it was made of samples of this image.
	CarriedFrom string `json:"carriedFrom,omitempty"`
	// Predicted says that the profile was told from the image alone, before anybody had
	// started it: then Samples is 0.
	Predicted bool `json:"predicted,omitempty"`
}
