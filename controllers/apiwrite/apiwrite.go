// Package apiwrite is about writing to the API server: what became of a write that
// failed, which version of an object is the newest, and how many like writes are sent.
package apiwrite

import (
	"errors"
	"net/http"
	"strings"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
)

// Refused says that the API server has answered that it did not do the write and
// never will: a 4xx other than 408, 409 and 429, or that the object would be TooLarge.
// After any other error (a timeout, another 5xx, a broken connection) the write may
// have been done or may still be done. So it may after a 409, which is ambiguous:
// client-go repeats a request by itself where the server asks for it, and a conflict can
// be the answer to the second of two sendings of which the first was done.
func Refused(err error) bool {
	var status apierrors.APIStatus
	if !errors.As(err, &status) {
		return false
	}
	code := int(status.Status().Code)
	switch code {
	case http.StatusRequestTimeout, http.StatusConflict, http.StatusTooManyRequests:
		return false
	}
	return code >= 400 && code < 500 || TooLarge(err)
}

// TooLarge says that the object would be bigger than etcd takes, 1.5 MiB by default, or
// than the API server sends it. The API server has no status of its own for that: etcd
// and its client check it before anything is proposed, and it answers 500 in their words.
func TooLarge(err error) bool {
	if apierrors.IsRequestEntityTooLargeError(err) {
		return true
	}
	return apierrors.IsInternalError(err) &&
		(strings.Contains(err.Error(), "etcdserver: request is too large") || strings.Contains(err.Error(), "trying to send message larger than max"))
}

// NamespaceEnding says that a create was refused because its namespace is being deleted.
func NamespaceEnding(err error) bool {
	return apierrors.HasStatusCause(err, corev1.NamespaceTerminatingCause)
}
