// Package apiwrite tells what is known after a write to the API server failed.
package apiwrite

import (
	"errors"
	"net/http"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
)

// Refused says that the API server has answered that it did not do the write and
// never will: a 4xx other than 408, 409 and 429. After any other error (a timeout,
// a 5xx, a broken connection) the write may have been done or may still be done.
// A 409 is not among them because client-go repeats a request by itself when the
// server asks for it, so that a conflict can be the answer to the second of two
// sendings of which the first was done.
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
	return code >= 400 && code < 500
}

// NamespaceEnding says that a create was refused because its namespace is being deleted.
func NamespaceEnding(err error) bool {
	return apierrors.HasStatusCause(err, corev1.NamespaceTerminatingCause)
}
