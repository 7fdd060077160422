package watch

import (
	"context"
	"net/http"
	"time"

	"github.com/apparate/apparate/controllers/serve"
)

// Endpoint is the source that is told: a server with a [Receiver].
type Endpoint struct {
	Receiver
	serve.Server
}

var _ Source = (*Endpoint)(nil)

// slow is how long a sender may take for its request: it must not hold one of the
// places, of which there are few.
const slow = 10 * time.Second

// Run serves notifications until the context ends, and then lets those that are
// being followed come to their end.
func (e *Endpoint) Run(ctx context.Context, report Report) error {
	e.Report = report
	e.What, e.Slow, e.Work = "notifications", slow, workLimit
	mux := http.NewServeMux()
	mux.Handle(PathPrefix, &e.Receiver)
	return e.Server.Run(ctx, mux)
}
