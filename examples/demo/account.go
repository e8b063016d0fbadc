package main

import (
	"net/http"

	"github.com/google/uuid"
	"github.com/gormsessions/gormsessions"
)

// devices are what the account page shows.
type devices struct {
	Current *Device
	Others  []Device
}

func (s *site) account(w http.ResponseWriter, r *http.Request, device *Device) error {
	others, err := s.sessions.List(r.Context(), gormsessions.Active, gormsessions.ForUser(device.Owner), gormsessions.Except(device))
	if err != nil {
		return err
	}
	return s.show(w, r, "account", view{Title: "Devices", Tab: "devices", Device: device, Data: devices{device, others}})
}

// signOutDevice ends one session of the person's own: ForUser leaves everybody
// else's alone, whatever the id in the URL.
func (s *site) signOutDevice(w http.ResponseWriter, r *http.Request, device *Device) error {
	id, err := uuid.Parse(r.PathValue("id"))
	if err != nil {
		return errNotFound
	}
	if id == device.ID {
		return s.signOut(w, r)
	}
	if _, err := s.sessions.Revoke(r.Context(), "signed out on another device",
		gormsessions.ForUser(device.Owner), gormsessions.WithID(id)); err != nil {
		return err
	}
	http.Redirect(w, r, "/account?done=device-out", http.StatusSeeOther)
	return nil
}

func (s *site) signOutOthers(w http.ResponseWriter, r *http.Request, device *Device) error {
	if _, err := s.sessions.Revoke(r.Context(), "signed out of all others",
		gormsessions.ForUser(device.Owner), gormsessions.Except(device)); err != nil {
		return err
	}
	http.Redirect(w, r, "/account?done=others-out", http.StatusSeeOther)
	return nil
}

func (s *site) signOutEverywhere(w http.ResponseWriter, r *http.Request, device *Device) error {
	if _, err := s.sessions.Revoke(r.Context(), "signed out everywhere", gormsessions.ForUser(device.Owner)); err != nil {
		return err
	}
	return s.signOut(w, r) // and the cookie goes too
}

func (s *site) renameDevice(w http.ResponseWriter, r *http.Request, device *Device) error {
	id, err := uuid.Parse(r.PathValue("id"))
	if err != nil {
		return errNotFound
	}
	if err := r.ParseForm(); err != nil {
		return badForm(err)
	}
	renamed := s.db.WithContext(r.Context()).Model(&Device{}).
		Scopes(gormsessions.Active, gormsessions.ForUser(device.Owner), gormsessions.WithID(id)).
		Update("name", clean(r.PostFormValue("name"), 60))
	if renamed.Error != nil {
		return renamed.Error
	}
	s.live.wake(device.OwnerID)
	http.Redirect(w, r, "/account?done=renamed", http.StatusSeeOther)
	return nil
}
