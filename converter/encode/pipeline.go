package encode

import (
	"bytes"
	"context"
	"crypto/sha256"
)

// tailSize is the room for headers behind a full chunk. A longer run of headers
// goes on in a member of its own.
const tailSize = 64 << 10

// member is one gzip member or zstd frame on its way through the pipeline.
type member struct {
	raw   []byte // the tar's bytes
	out   bytes.Buffer
	items []item
	// pieces are the places of content in raw.
	pieces []piece
	// done gets one value when out and the pieces' digests are there.
	done chan struct{}
}

// item is one thing for the TOC, in tar order: an entry that needs no offset,
// or a piece of a file.
type item struct {
	entry *entry
	piece int // index into pieces where entry is nil
}

// piece is a chunk of a file: raw[start:start+len].
type piece struct {
	file       *file
	start, len int
	last       bool
	digest     [sha256.Size]byte
}

// pipeline moves a fixed number of members from the packer through the workers
// to the sink and back. Taking one from free is what bounds memory; the other
// channels have room for all of them, so that only free is ever waited for.
type pipeline struct {
	ctx   context.Context
	free  chan *member
	work  chan *member
	order chan *member
	o     Options
}

func newPipeline(ctx context.Context, o Options) *pipeline {
	// Two for each worker keep it busy while the sink waits for the slowest.
	n := 2*o.Workers + 2
	p := &pipeline{
		ctx:   ctx,
		free:  make(chan *member, n),
		work:  make(chan *member, n),
		order: make(chan *member, n),
		o:     o,
	}
	for range n {
		p.free <- &member{done: make(chan struct{}, 1)}
	}
	return p
}

// take waits for a member that is free.
func (p *pipeline) take() (*member, error) {
	select {
	case m := <-p.free:
		return m, nil
	case <-p.ctx.Done():
		return nil, context.Cause(p.ctx)
	}
}

// send hands a filled member to the workers and, in this order, to the sink.
func (p *pipeline) send(m *member) {
	p.order <- m
	p.work <- m
}

// end says that no more members come.
func (p *pipeline) end() {
	close(p.order)
	close(p.work)
}

// compress is a worker. It ends with the work, or with the context.
func (p *pipeline) compress() error {
	c, err := newMembers(p.o)
	if err != nil {
		return err
	}
	for m := range p.work {
		if p.ctx.Err() != nil {
			return context.Cause(p.ctx)
		}
		if err := c.compress(&m.out, m.raw); err != nil {
			return err
		}
		for i := range m.pieces {
			c := &m.pieces[i]
			c.digest = sha256.Sum256(m.raw[c.start : c.start+c.len])
		}
		m.done <- struct{}{}
	}
	return nil
}

// drain writes the members in the order in which they were sent.
func (p *pipeline) drain(out *sink) error {
	for m := range p.order {
		select {
		case <-m.done:
		case <-p.ctx.Done():
			return context.Cause(p.ctx)
		}
		if err := out.member(m); err != nil {
			return err
		}
		m.raw, m.items, m.pieces = m.raw[:0], m.items[:0], m.pieces[:0]
		p.free <- m
	}
	return nil
}
