// Package registry serves the image store to the node as a read-only registry that
// stands in for all others: what the store does not have is fetched from the real
// registry.
package registry

import (
	"encoding/json"
	"errors"
	"io/fs"
	"log"
	"net"
	"net/http"
	"os"
	"slices"
	"strings"

	v1 "github.com/google/go-containerregistry/pkg/v1"

	"github.com/opensandbox/operator/tests/cluster/internal/image"
)

// Server answers the pull part of the registry protocol.
type Server struct {
	// Images is the folder of the image store.
	Images string
	// Allow lists the addresses that may ask. Pods must not, because the server uses the
	// user's own credentials at other registries.
	Allow []string
}

// request is one parsed path: /v2/REPOSITORY/{manifests,blobs}/REFERENCE. The node adds
// ?ns=HOST, the registry that the image's name asks for.
type request struct {
	host, repository, kind, reference string
}

func parse(r *http.Request) (request, bool) {
	path, ok := strings.CutPrefix(r.URL.Path, "/v2/")
	if !ok {
		return request{}, false
	}
	for _, kind := range []string{"manifests", "blobs"} {
		before, after, found := cutLast(path, "/"+kind+"/")
		if found {
			return request{host: r.URL.Query().Get("ns"), repository: before, kind: kind, reference: after}, true
		}
	}
	return request{}, false
}

func cutLast(s, separator string) (before, after string, found bool) {
	at := strings.LastIndex(s, separator)
	if at < 0 {
		return "", "", false
	}
	return s[:at], s[at+len(separator):], true
}

// ServeHTTP implements http.Handler.
func (s *Server) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if !s.allowed(r.RemoteAddr) {
		fail(w, http.StatusForbidden, "DENIED", "this registry serves its own node only")
		return
	}
	if r.Method != http.MethodGet && r.Method != http.MethodHead {
		fail(w, http.StatusMethodNotAllowed, "UNSUPPORTED", "this registry is read-only; use the command 'image' or 'load'")
		return
	}
	if r.URL.Path == "/v2/" {
		w.WriteHeader(http.StatusOK)
		return
	}
	req, ok := parse(r)
	if !ok {
		fail(w, http.StatusNotFound, "NAME_UNKNOWN", "no such path")
		return
	}
	found, err := s.serveStored(w, r, req)
	if err != nil {
		log.Printf("%s: %v", r.URL, err)
		fail(w, http.StatusInternalServerError, "UNKNOWN", err.Error())
		return
	}
	if !found {
		serveUpstream(w, r, req)
	}
}

func (s *Server) allowed(remote string) bool {
	host, _, err := net.SplitHostPort(remote)
	return err == nil && slices.Contains(s.Allow, host)
}

// serveStored answers from the store, if it has what is asked for.
func (s *Server) serveStored(w http.ResponseWriter, r *http.Request, req request) (bool, error) {
	store := image.Store{Dir: s.Images}
	digest, err := v1.NewHash(req.reference)
	if err != nil {
		full := req.repository + ":" + req.reference
		if req.host != "" {
			full = req.host + "/" + full
		}
		descriptor, err := store.Find(full)
		if err != nil || descriptor == nil {
			return false, err
		}
		digest = descriptor.Digest
	}
	path := store.BlobPath(digest)
	if req.kind == "blobs" {
		return serveFile(w, r, path, digest, "application/octet-stream")
	}
	data, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	var manifest struct {
		MediaType string `json:"mediaType"`
	}
	if err := json.Unmarshal(data, &manifest); err != nil {
		return false, err
	}
	return serveFile(w, r, path, digest, manifest.MediaType)
}

func serveFile(w http.ResponseWriter, r *http.Request, path string, digest v1.Hash, mediaType string) (bool, error) {
	file, err := os.Open(path)
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	defer file.Close()
	info, err := file.Stat()
	if err != nil {
		return false, err
	}
	w.Header().Set("Content-Type", mediaType)
	w.Header().Set("Docker-Content-Digest", digest.String())
	http.ServeContent(w, r, "", info.ModTime(), file)
	return true, nil
}

// fail writes an error as the registry protocol wants it.
func fail(w http.ResponseWriter, status int, code, message string) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	_ = json.NewEncoder(w).Encode(map[string]any{
		"errors": []map[string]string{{"code": code, "message": message}},
	})
}
