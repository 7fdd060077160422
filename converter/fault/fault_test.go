package fault

import (
	"errors"
	"fmt"
	"testing"
	"time"
)

// TestAfter reads how long a registry wants to be left alone out of errors.
func TestAfter(t *testing.T) {
	busy := NewTemporary(RegistryError, nil, "busy").WithAfter(time.Minute)
	for _, c := range []struct {
		err  error
		want time.Duration
	}{
		{nil, 0}, {errors.New("other"), 0}, {New(NotFound, nil, "gone"), 0},
		{busy, time.Minute}, {fmt.Errorf("scanning: %w", busy), time.Minute}, {errors.Join(errors.New("other"), busy), time.Minute},
	} {
		if got := After(c.err); got != c.want {
			t.Errorf("%v: %v, want %v", c.err, got, c.want)
		}
	}
}
