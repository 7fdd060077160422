package main

import (
	"context"
	"errors"
	"log/slog"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"github.com/apparate/apparate/snapshotter/images"
)

// TestLeanWhenIdle: memory is given back at the start and once after each time of work, not during it.
func TestLeanWhenIdle(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		began := time.Now()
		var at []int
		stats := func() (s images.Stats) {
			// Work from the 25th second to the 55th, and a bit in the 95th.
			now := time.Since(began).Seconds()
			s.ServedBytes = int64(min(max(now-25, 0), 30))
			if now > 95 {
				s.ServedBytes++
			}
			return s
		}
		go leanWhenIdle(ctx, slog.New(slog.DiscardHandler), stats, func() error {
			at = append(at, int(time.Since(began).Seconds()))
			return errors.New("which does not end it")
		})
		time.Sleep(5 * time.Minute)
		cancel()
		synctest.Wait()
		if want := []int{0, 70, 110}; !slices.Equal(at, want) {
			t.Errorf("memory was given back after %v seconds, want %v", at, want)
		}
	})
}
