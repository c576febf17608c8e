package registry

import (
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"time"

	"github.com/google/go-containerregistry/pkg/authn"
	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/v1/remote/transport"
)

// outward is the client for other registries. Its timeouts are short, so that a machine
// without internet learns quickly that it cannot get an image.
var outward = &http.Transport{
	Proxy:                 http.ProxyFromEnvironment,
	DialContext:           (&net.Dialer{Timeout: 5 * time.Second}).DialContext,
	TLSHandshakeTimeout:   5 * time.Second,
	ResponseHeaderTimeout: 30 * time.Second,
}

// serveUpstream passes a request on to the real registry. All failures are "not
// found" for the node; the log has the cause.
func serveUpstream(w http.ResponseWriter, r *http.Request, req request) {
	if req.host == "" {
		fail(w, http.StatusNotFound, "MANIFEST_UNKNOWN", "not in the store")
		return
	}
	response, err := fetch(r, req)
	if err != nil {
		log.Printf("%s/%s %s: not in the store, and upstream: %v", req.host, req.repository, req.reference, err)
		fail(w, http.StatusNotFound, "MANIFEST_UNKNOWN", "not in the store, and "+err.Error())
		return
	}
	defer response.Body.Close()
	for _, key := range []string{"Content-Type", "Content-Length", "Docker-Content-Digest"} {
		if value := response.Header.Get(key); value != "" {
			w.Header().Set(key, value)
		}
	}
	w.WriteHeader(response.StatusCode)
	if _, err := io.Copy(w, response.Body); err != nil {
		log.Printf("%s/%s %s: %v", req.host, req.repository, req.reference, err)
	}
}

func fetch(r *http.Request, req request) (*http.Response, error) {
	repository, err := name.NewRepository(req.host + "/" + req.repository)
	if err != nil {
		return nil, err
	}
	auth, err := authn.DefaultKeychain.Resolve(repository)
	if err != nil {
		return nil, err
	}
	scopes := []string{repository.Scope(transport.PullScope)}
	authorized, err := transport.NewWithContext(r.Context(), repository.Registry, auth, outward, scopes)
	if err != nil {
		return nil, err
	}
	url := fmt.Sprintf("%s://%s/v2/%s/%s/%s", repository.Scheme(), repository.RegistryStr(), repository.RepositoryStr(), req.kind, req.reference)
	out, err := http.NewRequestWithContext(r.Context(), r.Method, url, nil)
	if err != nil {
		return nil, err
	}
	out.Header["Accept"] = r.Header["Accept"]
	return (&http.Client{Transport: authorized}).Do(out)
}
