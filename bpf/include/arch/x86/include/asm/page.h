/* Asked for by bcc's helpers; nothing of it is used. */
