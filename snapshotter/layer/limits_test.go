package layer

import (
	"context"
	"errors"
	"testing"
	"testing/synctest"
)

// TestWorkOrder: what readers wait for is decompressed before what is fetched along with
// it, and who gives up loses nobody's turn.
func TestWorkOrder(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		x := NewLimits(1, 0)
		if err := x.work(t.Context(), false); err != nil {
			t.Fatal(err)
		}
		var order []string
		wait := func(ctx context.Context, name string, urgent bool) {
			go func() {
				if err := x.work(ctx, urgent); err != nil {
					if !errors.Is(err, context.Canceled) {
						t.Error(err)
					}
					return
				}
				order = append(order, name) // one worker: one at a time
				x.done()
			}()
			synctest.Wait()
		}
		ctx, cancel := context.WithCancel(t.Context())
		wait(t.Context(), "first", false)
		wait(ctx, "gives up", true)
		wait(t.Context(), "second", false)
		wait(t.Context(), "reader", true)
		wait(t.Context(), "reader too", true)
		cancel()
		synctest.Wait()
		x.done()
		synctest.Wait()
		want := []string{"reader", "reader too", "first", "second"}
		if len(order) != len(want) {
			t.Fatalf("order %v, want %v", order, want)
		}
		for i := range want {
			if order[i] != want[i] {
				t.Fatalf("order %v, want %v", order, want)
			}
		}
		if x.free != 1 || len(x.urgent)+len(x.others) != 0 {
			t.Errorf("%d workers are free, %d and %d wait", x.free, len(x.urgent), len(x.others))
		}
	})
}
