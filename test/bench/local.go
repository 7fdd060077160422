package main

import (
	"context"
	"errors"
	"time"

	"github.com/apparate/apparate/test/node"
)

// startLocal starts an image that is on the node already: what a start takes when
// nothing has to come. The warm start is the second of two.
func (b *bench) startLocal(ctx context.Context, s subject, a arm, run *Run) error {
	l, err := b.localNode(ctx, s)
	if err != nil {
		return err
	}
	if a.warm {
		if err := b.startOnce(ctx, l, s, a, &Run{}); err != nil {
			return err
		}
	} else if err := b.dropCaches(ctx, l); err != nil {
		return err
	}
	return b.startOnce(ctx, l, s, a, run)
}

// localNode returns the node that has the image, making it when there is none.
func (b *bench) localNode(ctx context.Context, s subject) (*host, error) {
	if l := b.local[s.image]; l != nil {
		return l, nil
	}
	l, err := b.newHost(ctx, arm{kind: local}, b.registry.Addr)
	if err != nil {
		return nil, err
	}
	b.local[s.image] = l
	return l, l.node.Pull(ctx, b.registry.Addr+"/"+s.spec.Repository+":"+plainTag, node.Overlayfs)
}

// startOnce measures from ctr run to the answer.
func (b *bench) startOnce(ctx context.Context, l *host, s subject, a arm, run *Run) error {
	limited, cancel := context.WithTimeout(ctx, startLimit)
	defer cancel()
	began := time.Now()
	c, err := l.node.RunReady(limited, b.registry.Addr+"/"+s.spec.Repository+":"+plainTag, node.Overlayfs, "subject", s.spec, s.env...)
	run.Seconds = time.Since(began).Seconds()
	if err != nil {
		if c != nil {
			err = errors.Join(err, c.Stop(ctx))
		}
		return err
	}
	return errors.Join(l.prove(ctx, c, a, run), c.Stop(ctx))
}

// closeLocal ends the nodes with local images.
func (b *bench) closeLocal() error {
	var errs []error
	for _, l := range b.local {
		errs = append(errs, l.close())
	}
	return errors.Join(errs...)
}
