package main

import (
	"context"
	"log/slog"
	"time"

	"github.com/apparate/apparate/snapshotter/images"
)

// idleAfter is how long the daemon has nothing to do before it gives memory back, and how
// often it looks.
const idleAfter = 10 * time.Second

// leanWhenIdle calls lean at once, as starting touches nearly all pages of a program, and then each
// time that the daemon has worked, as stats tells, and has nothing to do again: nodes start
// something now and then, and have better use for the memory meanwhile.
func leanWhenIdle(ctx context.Context, log *slog.Logger, stats func() images.Stats, lean func() error) {
	last, worked := stats(), true
	for {
		now := stats()
		switch {
		case now != last:
			last, worked = now, true
		case worked:
			worked = false
			if err := lean(); err != nil {
				log.Debug("memory was not given back", "error", err)
			}
		}
		select {
		case <-ctx.Done():
			return
		case <-time.After(idleAfter):
		}
	}
}
