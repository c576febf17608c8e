package server

import (
	"errors"
	"io"
	"net/http"

	"github.com/opensandbox/operator/executor/api"
)

var errTooLarge = errors.New("the body is too large")

// maxDiscard is how much of a body that is too large is read and thrown away,
// so that the client, still writing, gets to see the refusal.
const maxDiscard = 32 << 20

func readBody(w http.ResponseWriter, r *http.Request) ([]byte, error) {
	body, err := io.ReadAll(io.LimitReader(r.Body, api.MaxRequestBytes+1))
	if err != nil {
		return nil, err
	}
	if len(body) > api.MaxRequestBytes {
		w.Header().Set("Connection", "close")
		_, _ = io.CopyN(io.Discard, r.Body, maxDiscard)
		return nil, errTooLarge
	}
	return body, nil
}
